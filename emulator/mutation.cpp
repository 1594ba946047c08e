// Mutants: which place is changed, and how often each is come to.
#include "emulator/mutation.hpp"

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {
Mutant mutant;
uint64_t visits_left = ~0ull;

// True in a kernel.
bool visit(int place) {
  Unobserved hidden;
  auto& all = visits();
  if (static_cast<size_t>(place) >= all.size()) all.resize(static_cast<size_t>(place) + 1);
  if (running == nullptr) {
    ++all[static_cast<size_t>(place)].host;
    return false;
  }
  ++all[static_cast<size_t>(place)].kernel;
  if (visits_left-- == 0) fault(FaultKind::deadlock, "the mutant goes on without end");
  return true;
}
}  // namespace

std::vector<Visits>& visits() {
  static std::vector<Visits> counts;
  return counts;
}
void set_mutant(Mutant m, uint64_t most_visits) {
  mutant = m;
  visits_left = most_visits;
}
bool mutated() { return mutant.place >= 0; }

bool decide(int place, bool value, bool shifted) {
  if (!visit(place) || place != mutant.place) return value;
  return mutant.change == Change::to_shifted ? shifted : mutant.change == Change::to_true;
}

bool changed(int place, Change change) {
  return visit(place) && place == mutant.place && change == mutant.change;
}

void mutated_copy_wait(int place, int pending) {
  if (changed(place, Change::to_removed)) return;
  copy_async_wait(changed(place, Change::to_shifted) ? pending + 1 : pending);
}

}  // namespace fulmen::emulator
