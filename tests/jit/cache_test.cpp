// The disk cache against what happens to files: damage, strangers, crashes, races, full and read-only disks.
#include "jit/cache.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "jit/key.hpp"
#include "support.hpp"

namespace fulmen::jit_test {
namespace {

using testing::HasSubstr;

constexpr uid_t kStranger = 12345;

CacheEntry entry_of(const std::string& key, size_t cubin_bytes = 100) {
  CacheEntry entry{key, "13.0", "log of " + key, std::string(cubin_bytes, '\0')};
  std::mt19937 random(static_cast<unsigned>(std::hash<std::string>()(key)));
  for (char& byte : entry.cubin) byte = static_cast<char>(random());
  return entry;
}

std::string file_of(const DiskCache& cache, const std::string& key) {
  return cache.dir() + "/" + key_name(key) + ".kernel";
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// Runs body in a child and returns its exit code; -1 when a signal ended it. A failed expectation in it exits with 99.
int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    const int code = body();
    _exit(testing::Test::HasFailure() ? 99 : code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// --- the folder

TEST(CacheFolder, IsChosenFromOptionAndEnvironment) {
  std::map<std::string, std::string> set;
  const auto environment = [&](const char* name) { return set[name]; };
  EXPECT_EQ(choose_cache_dir("", environment), "");
  set["HOME"] = "/home/me";
  EXPECT_EQ(choose_cache_dir("", environment), "/home/me/.cache/fulmen");
  set["XDG_CACHE_HOME"] = "relative";  // the specification says to ignore it
  EXPECT_EQ(choose_cache_dir("", environment), "/home/me/.cache/fulmen");
  set["XDG_CACHE_HOME"] = "/xdg";
  EXPECT_EQ(choose_cache_dir("", environment), "/xdg/fulmen");
  set["FULMEN_CACHE_DIR"] = "/cache";
  EXPECT_EQ(choose_cache_dir("", environment), "/cache");
  EXPECT_EQ(choose_cache_dir("/option", environment), "/option");
}

TEST(CacheFolder, IsMadeForThisUserAlone) {
  const TempDir dir;
  const mode_t before = umask(0);
  const DiskCache cache(dir / "a/b/cache/");
  umask(before);
  ASSERT_TRUE(cache.usable()) << cache.note();
  for (const char* part : {"a", "a/b", "a/b/cache"}) {
    struct stat status;
    ASSERT_EQ(stat((dir / part).c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0700u) << part;
  }
}

void expect_refused(const std::string& path, const char* why) {
  DiskCache cache(path);
  EXPECT_FALSE(cache.usable());
  EXPECT_THAT(cache.note(), testing::AllOf(HasSubstr(why), HasSubstr("memory only")));
  EXPECT_FALSE(cache.load("key").has_value());
  EXPECT_FALSE(cache.store(entry_of("key")).empty());
  EXPECT_FALSE(DiskCache::Lock(cache, "key", 0).held());
}

TEST(CacheFolder, IsRefusedWhereOthersMayWrite) {
  const TempDir dir;
  for (const mode_t mode : {0770, 0707, 0777, 01777, 0720, 0702}) {
    mkdir((dir / "cache").c_str(), 0700);
    chmod((dir / "cache").c_str(), mode);
    expect_refused(dir / "cache", "others may write");
  }
  chmod((dir / "cache").c_str(), 0755);  // reading harms nobody
  EXPECT_TRUE(DiskCache(dir / "cache").usable());
}

TEST(CacheFolder, IsRefusedAsASymbolicLinkOrAFile) {
  const TempDir dir;
  mkdir((dir / "real").c_str(), 0700);
  fs::create_symlink(dir / "real", dir / "link");
  expect_refused(dir / "link", "symbolic link");
  expect_refused(dir / "link/", "symbolic link");
  write_file(dir / "file", "");
  expect_refused(dir / "file", "Not a directory");
  expect_refused("relative", "not an absolute path");
  expect_refused("", "no directory is set");
}

TEST(CacheFolder, OfAnotherUserIsRefusedAndOfRootIsUsed) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to make another user's files";
  const TempDir dir;
  chmod(dir.path().c_str(), 0755);
  mkdir((dir / "cache").c_str(), 0700);
  ASSERT_EQ(chown((dir / "cache").c_str(), kStranger, kStranger), 0);
  expect_refused(dir / "cache", "belongs to user 12345");

  // A cache that root filled, read by a user.
  DiskCache filled(dir / "roots");
  ASSERT_EQ(filled.store(entry_of("key")), "");
  chmod((dir / "roots").c_str(), 0755);
  chmod(file_of(filled, "key").c_str(), 0644);
  EXPECT_EQ(in_child([&] {
              if (setuid(kStranger) != 0) return 1;
              DiskCache cache(dir / "roots");
              if (cache.load("key") != entry_of("key")) return 2;
              return cache.store(entry_of("other")).empty() ? 3 : 0;
            }),
            0);
}

// --- an entry

TEST(CacheEntry, ComesBackAsItWas) {
  const TempDir dir;
  DiskCache cache(dir / "cache");
  EXPECT_FALSE(cache.load("key").has_value());
  ASSERT_EQ(cache.store(entry_of("key")), "");
  EXPECT_EQ(cache.load("key"), entry_of("key"));
  EXPECT_EQ(DiskCache(dir / "cache").load("key"), entry_of("key"));
  struct stat status;
  ASSERT_EQ(stat(file_of(cache, "key").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  CacheEntry empty;
  EXPECT_EQ(decode(encode(empty)), empty);
}

TEST(CacheEntry, TruncatedAnywhereIsNone) {
  const std::string bytes = encode(entry_of("key"));
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(decode(bytes.substr(0, n)).has_value()) << n;
  EXPECT_FALSE(decode(bytes + "x").has_value());
}

TEST(CacheEntry, AlteredAnywhereIsNone) {
  const std::string bytes = encode(entry_of("key"));
  for (size_t at = 0; at < bytes.size(); ++at)
    for (const int bit : {0, 3, 7}) {
      std::string altered = bytes;
      altered[at] ^= static_cast<char>(1 << bit);
      EXPECT_FALSE(decode(altered).has_value()) << at;
    }
}

TEST(CacheEntry, LengthsThatOverflowAreNone) {
  // Right checksum, wrong lengths: only an attacker or a fault of ours makes these, and neither may crash us.
  std::string body(8, '\xff');
  body += "abc";
  XXH128_canonical_t sum;
  XXH128_canonicalFromHash(&sum, XXH3_128bits(body.data(), body.size()));
  std::string bytes = "fulmen kernel 1\n";
  bytes.append(reinterpret_cast<const char*>(sum.digest), sizeof sum.digest).append(body);
  EXPECT_FALSE(decode(bytes).has_value());
}

TEST(CacheEntry, UnderAnotherKeysNameIsNone) {
  const TempDir dir;
  DiskCache cache(dir / "cache");
  cache.store(entry_of("one"));
  cache.store(entry_of("two"));
  fs::rename(file_of(cache, "one"), dir / "swap");
  fs::rename(file_of(cache, "two"), file_of(cache, "one"));
  fs::rename(dir / "swap", file_of(cache, "two"));
  // The same as two texts of one hash: the name fits, the text decides.
  EXPECT_FALSE(cache.load("one").has_value());
  EXPECT_FALSE(cache.load("two").has_value());
  EXPECT_EQ(cache.store(entry_of("one")), "");
  EXPECT_EQ(cache.load("one"), entry_of("one"));
}

TEST(CacheEntry, ThatOthersMayHaveWrittenIsNone) {
  const TempDir dir;
  DiskCache cache(dir / "cache");
  const std::string file = file_of(cache, "key");
  const auto store = [&] { ASSERT_EQ(cache.store(entry_of("key")), ""); };
  for (const mode_t mode : {0660, 0606, 0620, 0602}) {
    store();
    chmod(file.c_str(), mode);
    EXPECT_FALSE(cache.load("key").has_value()) << mode;
  }
  store();
  EXPECT_TRUE(cache.load("key").has_value());

  fs::rename(file, dir / "elsewhere");
  fs::create_symlink(dir / "elsewhere", file);
  EXPECT_FALSE(cache.load("key").has_value()) << "a symbolic link";
  store();
  EXPECT_TRUE(cache.load("key").has_value()) << "the link is replaced, not followed";
  EXPECT_EQ(read_file(dir / "elsewhere"), encode(entry_of("key")));

  fs::remove(file);
  mkfifo(file.c_str(), 0600);
  EXPECT_FALSE(cache.load("key").has_value()) << "a fifo, which must not block";
  fs::remove(file);
  mkdir(file.c_str(), 0700);
  EXPECT_FALSE(cache.load("key").has_value()) << "a folder";
  EXPECT_THAT(cache.store(entry_of("key")), HasSubstr("cannot rename"));
  fs::remove(file);

  if (geteuid() != 0) GTEST_SKIP() << "the rest needs root, to make another user's file";
  store();
  ASSERT_EQ(chown(file.c_str(), kStranger, kStranger), 0);
  EXPECT_FALSE(cache.load("key").has_value());
  store();
  EXPECT_TRUE(cache.load("key").has_value());
}

TEST(CacheEntry, DamagedIsCompiledAgain) {
  const TempDir dir;
  const Target& target = target_by_name("sm_80");
  const auto get = [&] {
    KernelLibrary kernels(options_in(dir));
    return kernels.get(small_unit(), target);
  };
  const CompiledKernel good = get();
  const std::string file = dir / "cache/" + good.name + ".kernel";
  const std::string bytes = read_file(file);
  std::string altered = bytes;
  altered[bytes.size() - 7] ^= 1;  // in the cubin
  for (const std::string& damage : {std::string(), bytes.substr(0, 1000), altered, encode(entry_of("other text"))}) {
    write_file(file, damage);
    const CompiledKernel again = get();
    EXPECT_FALSE(again.from_disk);
    EXPECT_EQ(again.cubin, good.cubin);
    EXPECT_TRUE(get().from_disk);
    EXPECT_EQ(decode(read_file(file))->cubin, good.cubin);
  }
}

// --- processes

TEST(CacheProcesses, EightColdOnesGetTheSameBytes) {
  const TempDir dir;
  const auto start = std::chrono::steady_clock::now();
  std::vector<pid_t> children;
  for (int i = 0; i < 8; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      int code = 2;
      try {
        KernelLibrary kernels(options_in(dir));
        const CompiledKernel& kernel = kernels.get(small_unit(), target_by_name("sm_80"));
        write_file(dir / std::to_string(i), kernel.cubin);
        code = kernel.from_disk;
      } catch (const std::exception& error) {
        write_file(dir / std::to_string(i), error.what());
      }
      _exit(code);
    }
    children.push_back(child);
  }
  int compiled = 0;
  for (int i = 0; i < 8; ++i) {
    int status = 0;
    waitpid(children[i], &status, 0);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) < 2) << read_file(dir / std::to_string(i));
    compiled += WEXITSTATUS(status) == 0;
    EXPECT_EQ(read_file(dir / std::to_string(i)), read_file(dir / "0"));
  }
  EXPECT_GE(compiled, 1);
  // Who waits longer than three seconds may compile too; on a machine that isn't that slow one did.
  if (seconds_since(start) < 3) {
    EXPECT_EQ(compiled, 1);
  }
}

TEST(CacheProcesses, KilledAThousandTimesWhileWriting) {
  const TempDir dir;
  const CacheEntry entries[] = {entry_of("one", 40000), entry_of("two", 300000)};
  std::mt19937 random(1);
  int seen = 0;
  for (int kill_number = 0; kill_number < 1000; ++kill_number) {
    if (kill_number % 50 == 0) fs::remove_all(dir / "cache");
    const pid_t child = fork();
    if (child == 0) {
      DiskCache cache(dir / "cache");
      for (int i = 0;; ++i) {
        const DiskCache::Lock lock(cache, entries[i % 2].key, 3000);
        cache.store(entries[i % 2]);
      }
    }
    usleep(random() % 3000);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    DiskCache cache(dir / "cache");
    for (const CacheEntry& entry : entries) {
      EXPECT_TRUE(DiskCache::Lock(cache, entry.key, 0).held()) << "a dead process keeps a lock";
      if (!fs::exists(file_of(cache, entry.key))) continue;
      ++seen;
      ASSERT_EQ(cache.load(entry.key), entry) << "after kill " << kill_number;
    }
  }
  EXPECT_GT(seen, 100) << "the children were killed too early to write anything";

  // What the dead left behind goes when it is an hour old.
  const auto leftovers = [&] {
    int count = 0;
    for (const auto& file : fs::directory_iterator(dir / "cache")) count += file.path().extension() == ".tmp";
    return count;
  };
  write_file(dir / "cache/dead.tmp", "x");
  const int young = leftovers();
  DiskCache keep(dir / "cache");
  EXPECT_EQ(leftovers(), young) << "a young one may be in use";
  for (const auto& file : fs::directory_iterator(dir / "cache"))
    fs::last_write_time(file, fs::file_time_type::clock::now() - std::chrono::minutes(61));
  DiskCache sweep(dir / "cache");
  EXPECT_EQ(leftovers(), 0);
  EXPECT_EQ(sweep.load("one"), entries[0]);
}

TEST(CacheProcesses, AStoppedLockHolderIsPassedByInThreeSeconds) {
  const TempDir dir;
  const Target& target = target_by_name("sm_80");
  // The key as the library makes it, to stop in its way.
  Sources sources = embedded_sources();
  const Unit unit = small_unit();
  sources["user/variant.hpp"] = unit.user_source;
  const std::string program = program_text(unit);
  const std::string key = key_text(program, reached_sources(program, sources), compile_options(target));

  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    DiskCache cache(dir / "cache");
    const DiskCache::Lock lock(cache, key, 0);
    if (write(ready[1], lock.held() ? "y" : "n", 1) != 1) _exit(1);
    raise(SIGSTOP);
    _exit(0);
  }
  char held = 0;
  ASSERT_EQ(read(ready[0], &held, 1), 1);
  ASSERT_EQ(held, 'y');
  KernelLibrary kernels(options_in(dir));
  kernels.nvrtc();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_NO_THROW(kernels.get(small_unit(1), target));
  EXPECT_LT(seconds_since(start), 2.5) << "another key waits for nobody";
  const auto again = std::chrono::steady_clock::now();
  EXPECT_FALSE(kernels.get(unit, target).from_disk);
  const double waited = seconds_since(again);
  EXPECT_GE(waited, 2.9);
  EXPECT_LT(waited, 5.0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[0]), close(ready[1]);
  EXPECT_EQ(DiskCache(dir / "cache").load(key)->key, key) << "and the kernel is stored all the same";
}

// --- disks

// Runs body in a process of its own where path is a small file system; 77 when the machine does not let us.
int on_small_disk(const std::string& path, const char* options, const std::function<int()>& body) {
  return in_child([&] {
    if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0) return 77;
    if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return 77;
    mkdir(path.c_str(), 0700);
    if (mount("fulmen", path.c_str(), "tmpfs", 0, options) != 0) return 77;
    return body();
  });
}

TEST(CacheDisk, FullLeavesTheOldEntryAndNoPieces) {
  const TempDir dir;
  const int code = on_small_disk(dir / "cache", "size=256k,mode=0700", [&] {
    DiskCache cache(dir / "cache");
    EXPECT_EQ(cache.store(entry_of("small", 1000)), "");
    EXPECT_THAT(cache.store(entry_of("large", 400000)), HasSubstr("No space left"));
    EXPECT_FALSE(cache.load("large").has_value());
    EXPECT_EQ(cache.load("small"), entry_of("small", 1000));
    EXPECT_EQ(cache.store(entry_of("third", 100000)), "") << "the piece that didn't fit is gone";
    // A kernel whose text alone is too large for the disk is compiled and used.
    Unit unit = small_unit();
    unit.user_source += "//" + std::string(400000, 'x') + "\n";
    KernelLibrary kernels(options_in(dir));
    EXPECT_FALSE(kernels.get(unit, target_by_name("sm_80")).cubin.empty());
    return 0;
  });
  if (code == 77) GTEST_SKIP() << "needs root and the right to mount";
  EXPECT_EQ(code, 0);
}

TEST(CacheDisk, FileSizeLimitActsLikeAFullDisk) {
  const TempDir dir;
  EXPECT_EQ(in_child([&] {
              DiskCache cache(dir / "cache");
              signal(SIGXFSZ, SIG_IGN);
              const rlimit limit = {5000, 5000};
              setrlimit(RLIMIT_FSIZE, &limit);
              EXPECT_EQ(cache.store(entry_of("small", 1000)), "");
              EXPECT_THAT(cache.store(entry_of("large", 100000)), HasSubstr("cannot write"));
              EXPECT_EQ(std::distance(fs::directory_iterator(dir / "cache"), fs::directory_iterator()), 1);
              return 0;
            }),
            0);
}

TEST(CacheDisk, ReadOnlyIsReadAndThenMemory) {
  const TempDir dir;
  const int code = on_small_disk(dir / "cache", "size=4m,mode=0700", [&] {
    {
      KernelLibrary fill(options_in(dir));
      fill.get(small_unit(0), target_by_name("sm_80"));
    }
    if (mount(nullptr, (dir / "cache").c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0) return 77;
    KernelLibrary kernels(options_in(dir));
    EXPECT_TRUE(kernels.get(small_unit(0), target_by_name("sm_80")).from_disk);
    EXPECT_FALSE(kernels.get(small_unit(1), target_by_name("sm_80")).from_disk);
    EXPECT_FALSE(kernels.get(small_unit(1), target_by_name("sm_80")).cubin.empty());
    EXPECT_EQ(kernels.counters().compiles, 1);
    DiskCache cache(dir / "cache");
    EXPECT_THAT(cache.store(entry_of("key")), HasSubstr("Read-only"));
    return 0;
  });
  if (code == 77) GTEST_SKIP() << "needs root and the right to mount";
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace fulmen::jit_test
