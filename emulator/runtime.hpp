// The emulator's insides, shared by its own units only: state of grid, blocks, warps and threads, shadow memory, faults.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/clocks.hpp"
#include "emulator/emulator.hpp"
#include "emulator/instructions.hpp"

namespace fulmen::emulator {

struct Block;
struct Warp;
struct Thread;

// ---- shadow memory

// Who touched a place: thread (block << 10 | index), its epoch, the instruction's address in the program.
struct Access {
  static constexpr uint32_t kNobody = 0xffffffffu;
  static constexpr uint32_t kMany = 0xfffffffeu;   // epoch_bits is the number of a set of readers
  static constexpr uint32_t kSplit = 0xfffffffdu;  // epoch_bits is the number of four cells, one per byte
  static constexpr uint32_t kAtomic = 0x80000000u;

  uint32_t who = kNobody;
  uint32_t epoch_bits = 0;
  uint32_t pc = 0;

  uint32_t epoch() const { return epoch_bits & ~kAtomic; }
  bool atomic() const { return (epoch_bits & kAtomic) != 0; }
  uint32_t block() const { return who >> 10; }
  uint32_t thread() const { return who & 1023u; }
};
// Of one aligned 4-byte word.
struct Cell {
  Access write, read;
};
struct Split {
  Cell bytes[4];
};

enum ByteState : uint8_t { kUnwritten = 0, kWritten = 1, kPending = 2 };

struct RegionState {
  std::string name;
  uintptr_t begin, end, guard_begin, guard_end;
  RegionOptions options;
  std::vector<uint8_t> bytes;  // ByteState; empty when initialised
  static constexpr size_t kPageWords = 1024;
  std::vector<std::unique_ptr<Cell[]>> pages;
  std::vector<bool> read_bytes, written_bytes;  // by anybody, where accesses are counted

  Cell& cell(uintptr_t address) {
    const size_t word = address / 4 - begin / 4;
    auto& page = pages[word / kPageWords];
    if (!page) page.reset(new Cell[kPageWords]);
    return page[word % kPageWords];
  }
};

// ---- execution

enum class Waiting : uint8_t { nothing, warp, barrier, cluster, exited };

struct Copy {
  uint32_t offset;  // in the arena
  const void* global;
  uint8_t bytes, source_bytes;
  bool early;  // the bytes were read when it was issued
  uint32_t pc;
  unsigned char data[16];
};

struct Thread {
  void* context = nullptr;  // of the fiber while it doesn't run
  char* stack = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint32_t index = 0, lane = 0;
  Index3 index3{};
  uint32_t who = 0;
  uint32_t epoch = 1;
  KnowledgeRef known;  // of the own block
  WorldRef world;      // of others
  WorldRef fence_published[2];              // by Scope: what a later relaxed atomic gives away
  WorldRef seen_in_block, seen_elsewhere;   // what relaxed atomics have read and a later fence takes in

  Waiting waiting = Waiting::nothing;
  const char* waiting_for = "";
  int waiting_barrier = -1;
  uintptr_t waiting_pc = 0;
  int result = 0;
  bool resolved = false;  // griddepcontrol.wait has been passed

  std::vector<Copy> copies;          // in flight, oldest first
  std::deque<uint32_t> groups;       // sizes of the committed groups, oldest first
  uint32_t uncommitted = 0;
};

struct Collective {
  const char* name = nullptr;
  bool aligned = false;
  uint32_t mask = 0, arrived = 0;
  uintptr_t pc = 0;
  void* operands[32];
  LaneMeaning meaning = nullptr;
  void* meaning_context = nullptr;
};

struct LoggedAccess {
  uint32_t pc, occurrence;
  uint32_t lane;
  uint32_t size;
  uintptr_t address;
  bool shared;
};

struct Warp {
  Block* block = nullptr;
  uint32_t index = 0;
  uint32_t ready = 0;  // lanes that can run
  uint32_t live = 0;   // lanes that haven't exited
  int queue_place = -1;
  std::vector<Collective> collectives;
  std::vector<LoggedAccess> log;
};

struct Barrier {
  uint32_t expected = 0;          // threads; 0: nobody has come yet, or all live threads (whole_block)
  bool whole_block = false;
  uint32_t arrived_threads = 0;
  uint32_t arrived[32] = {};      // lanes by warp
  uint32_t waiting[32] = {};
  uint32_t warp_epoch[32] = {};
  uintptr_t pc = 0;
  KnowledgeRef known;
  WorldRef world;
  bool resolved = false;
  BlockVote kind = BlockVote::none;
  int count = 0, voters = 0;

  void reset() { *this = Barrier(); }
};

constexpr size_t kArenaGuard = 1024;
constexpr size_t kStackBytes = 128 * 1024;

struct Block {
  uint32_t number = 0;  // linear index in the grid
  Index3 index{};
  uint32_t now = 1;
  uint32_t live_threads = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];
  KnowledgeRef nothing_known;
  // Arena: guard | dynamic | guard | static ... | guard
  std::unique_ptr<char[]> arena_memory;
  char* arena = nullptr;
  size_t arena_bytes = 0, dynamic_bytes = 0, static_end = 0;
  std::vector<uint8_t> states;  // one per byte of the arena
  std::vector<Cell> cells;      // one per word of the arena
  std::map<const void*, size_t> statics;
};

struct ClusterBarrier {
  uint32_t arrived = 0;  // threads
  WorldRef world;
  bool resolved = false;
};

struct SyncObject {
  struct Entry {
    uint32_t block;
    Scope scope;
    WorldRef world;
  };
  std::vector<Entry> entries;
};

struct Grid {
  const Launch* launch = nullptr;
  void (*enter)(const void*) = nullptr;
  const void* call = nullptr;
  size_t call_bytes = 0;
  Report report;
  Index3 size{}, block_size{};
  uint32_t threads_per_block = 0, blocks = 0, next_block = 0;
  std::vector<uint32_t> block_order;
  std::vector<std::unique_ptr<Block>> resident, idle;
  std::vector<Warp*> queue;  // warps with ready lanes
  Warp* current_warp = nullptr;
  void* main_context = nullptr;
  bool stopping = false, count = false;
  uint64_t random = 0;
  uint64_t idle_turns = 0, turns = 0;
  std::unordered_map<uintptr_t, SyncObject> sync_objects;
  std::map<uint64_t, AccessCount> access_counts;  // by instruction and kind of memory
  std::unordered_map<uint32_t, ClusterBarrier> cluster_barriers;  // by cluster
  std::vector<std::vector<Access>> reader_sets;
  std::vector<uint32_t> free_reader_sets;
  std::vector<Split> splits;
};

extern Grid* grid;             // of the launch in progress
extern Thread* current;        // that runs kernel code; null inside the emulator and on the host
extern Thread* running;        // the same, but kept while the emulator works for it
extern uintptr_t current_stack;

inline uint64_t next_random() {  // splitmix64
  uint64_t z = (grid->random += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Hides the emulator's own work from the observation of loads and stores.
class Unobserved {
 public:
  Unobserved() : saved_(current) { current = nullptr; }
  ~Unobserved() { current = saved_; }
  Unobserved(const Unobserved&) = delete;

 private:
  Thread* saved_;
};

// Where the kernel called from.
#define CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

// ---- report.cpp: faults never return, the launch ends with the report
[[noreturn]] void fault(FaultKind kind, const std::string& what, uintptr_t pc = 0);
void add_fault(FaultKind kind, const std::string& text);
std::string deadlock_text(bool& divergent);
std::string describe_thread(const Thread& thread);
std::string describe_who(uint32_t who);
std::string lanes_text(uint32_t lanes);
std::string line_of(uintptr_t pc);  // "file:line (function) <- file:line (caller)"
std::string where(uintptr_t pc);    // the same for reports; nothing under a mutant, whose reports nobody reads
bool same_place(uintptr_t a, uintptr_t b);
uint32_t pack_pc(uintptr_t pc);
uintptr_t unpack_pc(uint32_t pc);

// ---- regions.cpp
RegionState* find_region(uintptr_t address);  // guard bands included
bool is_program_constant(uintptr_t address);
std::string describe_address(uintptr_t address);
void clear_shadow();

// ---- races.cpp
struct AccessInfo {
  uintptr_t address;
  uint32_t size;
  bool write, atomic;
  uintptr_t pc;
  uint32_t packed_pc;
};
// The part of the access that lies in the word: `address` and `word` count alike, from wherever the word's memory begins.
void touch_word(Thread& t, Cell& cell, uintptr_t word, uintptr_t address, const AccessInfo& now);

// ---- counters.cpp, where accesses are counted
void log_access(Thread& t, uintptr_t address, uint32_t size, bool shared, uint32_t packed_pc);
void flush_log(Warp& warp);
void count_least(RegionState& r, uintptr_t address, uint32_t size, bool write);

// ---- accesses.cpp
void observe(uintptr_t address, uint32_t size, bool write, uintptr_t pc);
void check_aligned(uintptr_t address, uint32_t size, uintptr_t pc, const char* what);
void observe_shared(Thread& t, Block& owner, uint32_t offset, uint32_t size, bool write, uintptr_t pc, bool atomic = false);
void observe_global(Thread& t, uintptr_t address, uint32_t size, bool write, uintptr_t pc, bool atomic = false);
inline bool in_arena(const Block& block, uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(block.arena) < block.arena_bytes;
}
Block* owner_of(const Thread& t, uintptr_t address);  // the block of t's cluster whose shared memory it is; null: none

// ---- copies.cpp
void check_exit(Thread& t);

// ---- fibers.cpp
void take_stack(Thread& t);
void give_stack(Thread& t);
void make_fiber(Thread& t);               // that will run the kernel
void enqueue(Warp& warp, uint32_t lanes);  // they can run
bool run_threads();                        // until a block has ended, or a fault; false: none can run
void wait_for_turn(Thread& t);             // until somebody wakes it
void wake(Thread& t);
void give_turn(Thread& t);  // another ready thread may run
[[noreturn]] void stop_launch();
Thread& calling();

// ---- launch.cpp
void finish_thread(Thread& t);  // its kernel has returned

// ---- warps.cpp, barriers.cpp, cluster.cpp
void leave_collectives(Thread& t);  // it exits
void leave_barriers(Thread& t);
void complete_cluster(uint32_t cluster);  // if all its live threads have come

// ---- mutation.cpp
bool mutated();  // a mutant runs

}  // namespace fulmen::emulator
