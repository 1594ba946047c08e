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
  for (int most = 1024; most <= 1 << 16; most *= 2) {  // the kernel refuses a set smaller than its own
    cpu_set_t* set = CPU_ALLOC(most);
    const size_t bytes = CPU_ALLOC_SIZE(most);
    if (set == nullptr) return 1;
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return 1;
}

int quota_cpus(double quota, double period) {
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : 1 << 20;
}

bool lists(const std::string& controllers, const std::string& name) {
  return ("," + controllers + ",").find("," + name + ",") != std::string::npos;
}

}  // namespace

// v2: cpu.max, v1: cpu.cfs_*_us; of this process's group and of every group above it.
int cgroup_cpus(const std::string& root) {
  int cpus = 1 << 20;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool v2 = controllers.empty();
    if (!v2 && !lists(controllers, "cpu")) continue;
    while (true) {
      if (v2) {
        std::ifstream file(root + "/sys/fs/cgroup" + path + "/cpu.max");
        std::string quota;
        double period = 0;
        if (file >> quota >> period && quota != "max") cpus = std::min(cpus, quota_cpus(atof(quota.c_str()), period));
      } else {
        const std::string base = root + "/sys/fs/cgroup/cpu" + path;
        double quota = 0, period = 0;
        std::ifstream(base + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(base + "/cpu.cfs_period_us") >> period;
        cpus = std::min(cpus, quota_cpus(quota, period));
      }
      const size_t slash = path.find_last_of('/');
      if (slash == std::string::npos || path == "/") break;
      path.resize(slash);
    }
  }
  return cpus;
}

int usable_cpus() {
  int cpus = std::min(affinity_cpus(), cgroup_cpus());
  if (const char* text = secure_getenv("FULMEN_NUM_THREADS")) {
    const int asked = atoi(text);
    if (asked > 0) cpus = asked;
  }
  return std::clamp(cpus, 1, 1024);
}

}  // namespace fulmen
