// How many CPUs this process may use.
#pragma once

#include <string>

namespace fulmen {

// FULMEN_NUM_THREADS where set, else the smaller of the affinity mask and the cgroup's CPU quota (rounded up). At least 1.
int usable_cpus();

// The cgroup's CPU quota, rounded up; 2^20 where there is none. `root` stands before /proc and /sys: tests have their own.
int cgroup_cpus(const std::string& root = "");

}  // namespace fulmen
