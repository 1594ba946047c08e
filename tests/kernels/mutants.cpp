// Changes the kernels at one place after another (mutate.py makes the places) and runs the tests of this folder against each mutant:
// one of them must fail. What no test can see stands in equivalent_mutants.txt with the reason; one that stands there and is caught, or
// doesn't and lives, is a failure, but for the files that open_mutants.txt names. A place that no test comes to counts as living.
//
//   mutants [--every N] [--only TEXT] [--shard I/N] [--tests TEXT] [--list]
//
// --tests: only tests whose names hold the text; what others would catch lives.
// Tests run in child processes: a mutant may crash or go on without end, which is as good as a report.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <thread>

#include "emulator/mutation.hpp"

namespace fulmen {
namespace {

using emulator::Change;
using emulator::Mutant;

struct Candidate {
  int place;
  Change change;
  const char* name;
};
const Candidate kCandidates[] = {
#include "places.inc"
};

struct Test {
  std::string name;
  double seconds;
  uint64_t all_visits;
  std::vector<emulator::Visits> visits;  // by place
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// One test under one mutant, in this process, which ends with it.
[[noreturn]] void run_child(const std::string& test, Mutant mutant, uint64_t most_visits, int visits_to) {
  const int null = open("/dev/null", O_WRONLY);
  dup2(null, 1), dup2(null, 2);
  const rlimit seconds{60, 60};
  setrlimit(RLIMIT_CPU, &seconds);
  const rlimit core{0, 0};
  setrlimit(RLIMIT_CORE, &core);
  GTEST_FLAG_SET(filter, test);
  GTEST_FLAG_SET(fail_fast, true);
  GTEST_FLAG_SET(output, "");
  if (visits_to < 0) {
    emulator::set_mutant(mutant, most_visits);
  }
  const int failed = RUN_ALL_TESTS();
  if (visits_to >= 0) {
    const auto& visits = emulator::visits();
    if (write(visits_to, visits.data(), visits.size() * sizeof(visits[0])) < 0) _exit(2);
  }
  _exit(failed);
}

// The unchanged kernels: every test must pass, and tells which places it comes to.
bool learn(std::vector<Test>& tests, const std::vector<std::string>& named) {
  const auto* unit = testing::UnitTest::GetInstance();
  bool good = true;
  for (int s = 0; s < unit->total_test_suite_count(); ++s) {
    const auto* suite = unit->GetTestSuite(s);
    for (int t = 0; t < suite->total_test_count(); ++t) {
      Test test{fmt::format("{}.{}", suite->name(), suite->GetTestInfo(t)->name()), 0, 0, {}};
      const auto holds = [&](const std::string& text) { return test.name.find(text) != std::string::npos; };
      if (!named.empty() && std::ranges::none_of(named, holds)) continue;
      int ends[2];
      if (pipe(ends) != 0) return false;
      const double start = now();
      const pid_t child = fork();
      if (child == 0) run_child(test.name, {}, 0, ends[1]);
      close(ends[1]);
      uint64_t buffer[512];
      std::string bytes;
      for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) bytes.append(reinterpret_cast<char*>(buffer), static_cast<size_t>(n));
      close(ends[0]);
      int status = 0;
      waitpid(child, &status, 0);
      test.seconds = now() - start;
      test.visits.resize(bytes.size() / sizeof(emulator::Visits));
      std::copy_n(bytes.data(), test.visits.size() * sizeof(emulator::Visits), reinterpret_cast<char*>(test.visits.data()));
      for (const auto& n : test.visits) test.all_visits += n.kernel;
      if (status != 0) {
        fmt::print("{} fails without any mutant\n", test.name);
        good = false;
      }
      tests.push_back(std::move(test));
    }
  }
  std::ranges::sort(tests, {}, &Test::seconds);  // the quick ones first
  return good;
}

enum class Fate { caught, alive, unvisited, host_only };  // the last: kernels share a file with code of the host

// A mutant on its way through the tests that come to its place.
struct Trial {
  const Candidate* candidate;
  std::vector<const Test*> tests;
  size_t next = 0;
  pid_t child = -1;
};

using Ended = std::function<void(const Candidate&, Fate)>;

void run_all(const std::vector<const Candidate*>& chosen, const std::vector<Test>& tests, unsigned at_once, const Ended& ended_as) {
  std::vector<Trial> waiting;
  for (const Candidate* c : chosen) {
    Trial trial{c, {}};
    bool by_host = false;
    for (const Test& test : tests) {
      if (test.visits.size() <= static_cast<size_t>(c->place)) continue;
      const auto& visits = test.visits[static_cast<size_t>(c->place)];
      by_host |= visits.host != 0;
      if (visits.kernel != 0) trial.tests.push_back(&test);
    }
    if (trial.tests.empty()) {
      ended_as(*c, by_host ? Fate::host_only : Fate::unvisited);
    } else {
      waiting.push_back(std::move(trial));
    }
  }
  std::vector<Trial> active;
  const auto start_next = [](Trial& trial) {
    const Test* test = trial.tests[trial.next++];
    fflush(stdout);
    trial.child = fork();
    if (trial.child == 0) run_child(test->name, {trial.candidate->place, trial.candidate->change}, 4 * test->all_visits + 1'000'000, -1);
  };
  std::ranges::reverse(waiting);
  while (!waiting.empty() || !active.empty()) {
    while (!waiting.empty() && active.size() < at_once) {
      active.push_back(std::move(waiting.back()));
      waiting.pop_back();
      start_next(active.back());
    }
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    const auto it = std::ranges::find(active, ended, &Trial::child);
    if (it == active.end()) continue;
    if (status != 0) {
      ended_as(*it->candidate, Fate::caught);
    } else if (it->next < it->tests.size()) {
      start_next(*it);
      continue;
    } else {
      ended_as(*it->candidate, Fate::alive);
    }
    active.erase(it);
  }
}

// Lines of the list: names of mutants, then "  because ..." for all of them since the reason before.
std::map<std::string, std::string> read_equivalents() {
  std::map<std::string, std::string> reasons;
  std::vector<std::string> names;
  std::ifstream file(FULMEN_SOURCE_DIR "/tests/kernels/equivalent_mutants.txt");
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    if (line[0] != ' ') {
      names.push_back(line);
      continue;
    }
    for (const std::string& name : names) reasons[name] = line;
    names.clear();
  }
  for (const std::string& name : names) reasons[name] = "";
  return reasons;
}

std::vector<std::string> read_open() {
  std::vector<std::string> beginnings;
  std::ifstream file(FULMEN_SOURCE_DIR "/tests/kernels/open_mutants.txt");
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') beginnings.push_back(line);
  }
  return beginnings;
}

int run(int argc, char** argv) {
  size_t every = 1, shard = 0, shards = 1;
  std::vector<std::string> only, named;
  bool list = false;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--list") list = true;
    if (i + 1 == argc) break;
    if (option == "--every") every = std::stoul(argv[++i]);
    if (option == "--only") only.push_back(argv[++i]);
    if (option == "--tests") named.push_back(argv[++i]);
    if (option == "--shard") {
      const std::string value = argv[++i];
      shard = std::stoul(value);
      shards = std::stoul(value.substr(value.find('/') + 1));
    }
  }
  std::vector<const Candidate*> chosen;
  for (size_t i = 0; i < std::size(kCandidates); ++i) {
    const Candidate& c = kCandidates[i];
    const auto holds = [&](const std::string& text) { return std::string_view(c.name).find(text) != std::string_view::npos; };
    if (!only.empty() && std::ranges::none_of(only, holds)) continue;
    if (i % every == 0 && i / every % shards == shard) chosen.push_back(&c);
  }
  if (list) {
    for (const Candidate* c : chosen) fmt::print("{}\n", c->name);
    return 0;
  }
  setenv("FULMEN_TEST_SEEDS", "2", 0);
  std::vector<Test> tests;
  const double start = now();
  if (!learn(tests, named)) return 1;
  const double learned = now();
  const auto reasons = read_equivalents();
  const auto open = read_open();
  size_t caught = 0, still_open = 0, host_only = 0, equivalent = 0, wrong = 0;
  run_all(chosen, tests, std::max(1u, std::thread::hardware_concurrency()), [&](const Candidate& c, Fate fate) {
    const auto reason = reasons.find(c.name);
    caught += fate == Fate::caught;
    host_only += fate == Fate::host_only;
    if (fate == Fate::host_only) return;
    if (fate == Fate::caught && reason != reasons.end()) {
      fmt::print("listed as equivalent, but caught: {}\n", c.name);
      ++wrong;
    } else if (fate != Fate::caught && (reason == reasons.end() || reason->second.empty())) {
      fmt::print("{}: {}\n", fate == Fate::alive ? "NOT CAUGHT" : "NO TEST COMES TO", c.name);
      const bool is_open = std::ranges::any_of(open, [&](const std::string& path) { return std::string_view(c.name).starts_with(path); });
      ++(is_open ? still_open : wrong);
    } else if (fate != Fate::caught) {
      ++equivalent;
    }
    fflush(stdout);
  });
  std::set<std::string> known;
  for (const Candidate& c : kCandidates) known.insert(c.name);
  for (const auto& [name, reason] : reasons) {
    if (known.contains(name)) continue;
    fmt::print("the list names a mutant that no longer exists: {}\n", name);
    ++wrong;
  }
  fmt::print("{} of {} mutants: {} caught, {} equivalent, {} in code of the host, {} open, {} wrong; {:.0f} s after {:.0f} s of unchanged tests\n", chosen.size(), std::size(kCandidates), caught,
             equivalent, host_only, still_open, wrong, now() - learned, learned - start);
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fulmen

int main(int argc, char** argv) {
  int gtest_argc = 1;
  testing::InitGoogleTest(&gtest_argc, argv);
  return fulmen::run(argc, argv);
}
