// What the places of a mutated copy of kernels/ (tests/kernels/mutate.py) turn into: each does what the kernel says, unless it is the
// place that the running mutant changes. On the host nothing is changed.
#pragma once

#include <cstdint>
#include <vector>

namespace fulmen::emulator {

enum class Change : uint8_t { to_true, to_false, to_shifted, to_first, to_second, to_removed, to_relaxed };

struct Mutant {
  int place = -1;  // none
  Change change = Change::to_removed;
};
// For all launches from now on. Coming to more places than that is a fault: the mutant goes on without end.
void set_mutant(Mutant mutant, uint64_t most_visits);
// How often threads of kernels, and host code, have come to each place.
struct Visits {
  uint64_t kernel = 0, host = 0;
};
std::vector<Visits>& visits();

// ---- places: called by kernels
bool decide(int place, bool value, bool shifted);
bool changed(int place, Change change);
void mutated_copy_wait(int place, int pending);

#define FULMEN_PLACE_FN inline __attribute__((always_inline)) constexpr

// a < FULMEN_LESS(7) > b: between the two operators stands the place.
template <class T, class Place> struct HalfComparison {
  T left;
};
#define FULMEN_COMPARISON(name, op, second, neighbour)                                                           \
  template <int kPlace> struct name {};                                                                          \
  template <class T, int kPlace> FULMEN_PLACE_FN HalfComparison<T, name<kPlace>> operator op(T a, name<kPlace>) { \
    return {a};                                                                                                  \
  }                                                                                                              \
  template <class T, int kPlace, class U> FULMEN_PLACE_FN bool operator second(HalfComparison<T, name<kPlace>> a, U b) { \
    if (__builtin_is_constant_evaluated()) return a.left op b;                                                   \
    return decide(kPlace, a.left op b, a.left neighbour b);                                                      \
  }
FULMEN_COMPARISON(Less, <, >, <=)
FULMEN_COMPARISON(LessEqual, <=, >, <)
FULMEN_COMPARISON(Greater, >, <, >=)
FULMEN_COMPARISON(GreaterEqual, >=, <, >)
FULMEN_COMPARISON(Equal, ==, ==, ==)
#undef FULMEN_COMPARISON
// "!=" would rewrite itself as a negated ==.
template <int kPlace> struct Unequal {};
template <class T, int kPlace> FULMEN_PLACE_FN HalfComparison<T, Unequal<kPlace>> operator!=(T a, Unequal<kPlace>) { return {a}; }
template <class T, int kPlace, class U> FULMEN_PLACE_FN bool operator==(HalfComparison<T, Unequal<kPlace>> a, U b) {
  if (__builtin_is_constant_evaluated()) return a.left != b;
  return decide(kPlace, a.left != b, false);
}

template <int kPlace> FULMEN_PLACE_FN bool truth(bool value) {
  if (__builtin_is_constant_evaluated()) return value;
  return decide(kPlace, value, value);
}

template <int kPlace, bool kMax> struct Bound {
  template <class T> FULMEN_PLACE_FN T operator()(T a, T b) const {
    const T result = kMax ? (a < b ? b : a) : (b < a ? b : a);
    if (__builtin_is_constant_evaluated()) return result;
    if (changed(kPlace, Change::to_first)) return a;
    if (changed(kPlace, Change::to_second)) return b;
    if (changed(kPlace, Change::to_shifted)) return static_cast<T>(kMax ? result - 1 : result + 1);
    return result;
  }
};

}  // namespace fulmen::emulator

#define FULMEN_LESS(place) (::fulmen::emulator::Less<place>())
#define FULMEN_LESS_EQUAL(place) (::fulmen::emulator::LessEqual<place>())
#define FULMEN_GREATER(place) (::fulmen::emulator::Greater<place>())
#define FULMEN_GREATER_EQUAL(place) (::fulmen::emulator::GreaterEqual<place>())
#define FULMEN_EQUAL(place) (::fulmen::emulator::Equal<place>())
#define FULMEN_UNEQUAL(place) (::fulmen::emulator::Unequal<place>())
#define FULMEN_TRUTH(place) ::fulmen::emulator::truth<place>
#define FULMEN_MIN(place) ::fulmen::emulator::Bound<place, false>()
#define FULMEN_MAX(place) ::fulmen::emulator::Bound<place, true>()
#define FULMEN_UNLESS_REMOVED(place) \
  if (!::fulmen::emulator::changed(place, ::fulmen::emulator::Change::to_removed))
#define FULMEN_COPY_WAIT(place, pending) ::fulmen::emulator::mutated_copy_wait(place, pending)
#define FULMEN_ORDERED(place, ordered, relaxed) \
  (::fulmen::emulator::changed(place, ::fulmen::emulator::Change::to_relaxed) ? relaxed : ordered)
#define FULMEN_SYNCTHREADS_OR(place) \
  (::fulmen::emulator::changed(place, ::fulmen::emulator::Change::to_removed) ? +[](int p) { return p; } : +[](int p) { return __syncthreads_or(p); })
#define FULMEN_SYNCTHREADS_AND(place) \
  (::fulmen::emulator::changed(place, ::fulmen::emulator::Change::to_removed) ? +[](int p) { return p; } : +[](int p) { return __syncthreads_and(p); })
#define FULMEN_SYNCTHREADS_COUNT(place) \
  (::fulmen::emulator::changed(place, ::fulmen::emulator::Change::to_removed) ? +[](int p) { return p; } : +[](int p) { return __syncthreads_count(p); })
