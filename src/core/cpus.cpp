#include "core/cpus.hpp"

#include <sched.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>

namespace fulmen {
namespace {

int affinity_cpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

int quota_cpus(double quota, double period) {
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : 1 << 20;
}

// cgroup v2: cpu.max of this process's group and of every group above it.
int cgroup_cpus() {
  int cpus = 1 << 20;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers.find("cpu") == std::string::npos) continue;
    while (true) {
      if (v2) {
        std::ifstream file("/sys/fs/cgroup" + path + "/cpu.max");
        std::string quota;
        double period = 0;
        if (file >> quota >> period && quota != "max") cpus = std::min(cpus, quota_cpus(atof(quota.c_str()), period));
      } else {
        const std::string base = "/sys/fs/cgroup/cpu" + path;
        double quota = 0, period = 0;
        std::ifstream(base + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(base + "/cpu.cfs_period_us") >> period;
        cpus = std::min(cpus, quota_cpus(quota, period));
      }
      if (path.empty() || path == "/") break;
      path.resize(path.find_last_of('/'));
    }
  }
  return cpus;
}

}  // namespace

int usable_cpus() {
  int cpus = std::min(affinity_cpus(), cgroup_cpus());
  if (const char* text = secure_getenv("FULMEN_NUM_THREADS")) {
    const int asked = atoi(text);
    if (asked > 0) cpus = asked;
  }
  return std::clamp(cpus, 1, 1024);
}

}  // namespace fulmen
