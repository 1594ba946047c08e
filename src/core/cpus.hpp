// How many CPUs this process may use.
#pragma once

namespace fulmen {

// The smallest of: FULMEN_NUM_THREADS where set, the affinity mask, the cgroup's CPU quota (rounded up). At least 1.
int usable_cpus();

}  // namespace fulmen
