// Atomics, their orders and scopes, and fences: how threads learn of each other through memory.
#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

// All that this thread knows and has done, as others may learn it; what it does from now on is not in it.
WorldRef snapshot(Thread& t) {
  WorldRef world(t.world ? new World(*t.world.get()) : new World());
  KnowledgeRef known(new Knowledge(*t.known.get()));
  known->learn(t.index, t.epoch);
  world->learn(t.block->number, known);
  t.epoch = ++t.block->now;
  return world;
}

void take_in(Thread& t, const WorldRef& world) {
  if (!world) return;
  for (const auto& [block, knowledge] : world->blocks) {
    if (block == t.block->number) {
      t.known = joined(t.known, knowledge);
      continue;
    }
    const Knowledge* have = t.world ? t.world->find(block) : nullptr;
    if (have != nullptr && have->dominates(*knowledge.get())) continue;
    WorldRef mine(t.world ? new World(*t.world.get()) : new World());
    mine->learn(block, knowledge);
    t.world = mine;
  }
}

bool acquires(Order order) { return order == Order::acquire || order == Order::acq_rel; }
bool releases(Order order) { return order == Order::release || order == Order::acq_rel; }

void acquire_from(Thread& t, SyncObject& object, Order order, Scope scope) {
  for (const SyncObject::Entry& e : object.entries) {
    const bool same_block = e.block == t.block->number;
    if (!same_block && (e.scope != Scope::gpu || scope != Scope::gpu)) continue;
    if (acquires(order)) {
      take_in(t, e.world);
    } else {
      WorldRef& seen = same_block ? t.seen_in_block : t.seen_elsewhere;
      seen = joined(seen, e.world);
    }
  }
}

void release_to(Thread& t, SyncObject& object, Order order, Scope scope, bool continues_sequence) {
  if (!continues_sequence) object.entries.clear();
  auto add = [&](Scope s, const WorldRef& world) {
    if (!world) return;
    for (SyncObject::Entry& e : object.entries) {
      if (e.block == t.block->number && e.scope == s) {
        e.world = joined(e.world, world);
        return;
      }
    }
    object.entries.push_back({t.block->number, s, world});
  };
  if (releases(order)) {
    add(scope, snapshot(t));
  } else {
    add(Scope::block, t.fence_published[static_cast<int>(Scope::block)]);
    if (scope == Scope::gpu) add(Scope::gpu, t.fence_published[static_cast<int>(Scope::gpu)]);
  }
}

void observe_atomic(Thread& t, uintptr_t address, uint32_t size, bool write, uintptr_t pc) {
  ++grid->report.counters.atomics;
  check_aligned(address, size, pc, "atomic access");
  // Read and write: the read finds uninitialised words.
  if (Block* owner = owner_of(t, address)) {
    const auto offset = static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(owner->arena));
    if (write) observe_shared(t, *owner, offset, size, false, pc, true);
    observe_shared(t, *owner, offset, size, write, pc, true);
  } else {
    if (write) observe_global(t, address, size, false, pc, true);
    observe_global(t, address, size, write, pc, true);
  }
}

template <class T> T combine(Rmw operation, T old, T operand, T compare) {
  switch (operation) {
    case Rmw::add: return old + operand;
    case Rmw::exchange: return operand;
    case Rmw::minimum: return operand < old ? operand : old;
    case Rmw::maximum: return old < operand ? operand : old;
    case Rmw::compare_exchange: return old == compare ? operand : old;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (operation == Rmw::bit_and) return old & operand;
    if (operation == Rmw::bit_or) return old | operand;
    if (operation == Rmw::bit_xor) return old ^ operand;
  }
  return old;
}

template <class T> uint64_t apply(void* p, Rmw operation, uint64_t operand, uint64_t compare) {
  T old;
  std::memcpy(&old, p, sizeof(T));
  const T now = combine<T>(operation, old, narrow<T>(operand), narrow<T>(compare));
  if (std::memcmp(&old, &now, sizeof(T)) != 0) grid->idle_turns = 0;
  std::memcpy(p, &now, sizeof(T));
  return widen(old);
}

uint64_t atomic_at(uintptr_t pc, void* p, Rmw operation, Number type, uint64_t operand, uint64_t compare, Order order, Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  if ((next_random() & 3) == 0) give_turn(t);
  const uint32_t size = type == Number::u16 ? 2 : type == Number::u32 || type == Number::s32 || type == Number::f32 ? 4 : 8;
  const auto address = reinterpret_cast<uintptr_t>(p);
  const uint64_t idle = grid->idle_turns;
  observe_atomic(t, address, size, true, pc);
  grid->idle_turns = idle;
  SyncObject& object = grid->sync_objects[address];
  acquire_from(t, object, order, scope);
  release_to(t, object, order, scope, true);
  switch (type) {
    case Number::u32: return apply<uint32_t>(p, operation, operand, compare);
    case Number::s32: return apply<int32_t>(p, operation, operand, compare);
    case Number::u64: return apply<uint64_t>(p, operation, operand, compare);
    case Number::s64: return apply<int64_t>(p, operation, operand, compare);
    case Number::f32: return apply<float>(p, operation, operand, compare);
    case Number::f64: return apply<double>(p, operation, operand, compare);
    case Number::u16: return apply<uint16_t>(p, operation, operand, compare);
  }
  return 0;
}
}  // namespace

uint64_t atomic(void* p, Rmw operation, Number type, uint64_t operand, uint64_t compare, Order order, Scope scope) {
  return atomic_at(CALLER, p, operation, type, operand, compare, order, scope);
}

uint32_t atomic_add_u32(uint32_t* p, uint32_t v, Order order, Scope scope) {
  return static_cast<uint32_t>(atomic_at(CALLER, p, Rmw::add, Number::u32, v, 0, order, scope));
}

uint32_t atomic_load_u32(const uint32_t* p, Order order, Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  const uintptr_t pc = CALLER;
  give_turn(t);
  observe_atomic(t, reinterpret_cast<uintptr_t>(p), 4, false, pc);
  if (auto it = grid->sync_objects.find(reinterpret_cast<uintptr_t>(p)); it != grid->sync_objects.end()) {
    acquire_from(t, it->second, order, scope);
  }
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

void atomic_store_u32(uint32_t* p, uint32_t v, Order order, Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  const uintptr_t pc = CALLER;
  const auto address = reinterpret_cast<uintptr_t>(p);
  ++grid->report.counters.atomics;
  check_aligned(address, 4, pc, "atomic store");
  if (in_arena(*t.block, address)) {
    observe_shared(t, *t.block, static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(t.block->arena)), 4, true, pc, true);
  } else {
    observe_global(t, address, 4, true, pc, true);
  }
  release_to(t, grid->sync_objects[address], order, scope, false);
  std::memcpy(p, &v, 4);
  grid->idle_turns = 0;
}

void fence(Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  take_in(t, t.seen_in_block);
  t.seen_in_block = WorldRef();
  if (scope == Scope::gpu) {
    take_in(t, t.seen_elsewhere);
    t.seen_elsewhere = WorldRef();
  }
  const WorldRef world = snapshot(t);
  t.fence_published[static_cast<int>(Scope::block)] = world;
  if (scope == Scope::gpu) t.fence_published[static_cast<int>(Scope::gpu)] = world;
}

}  // namespace fulmen::emulator
