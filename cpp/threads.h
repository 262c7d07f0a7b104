// A small pool: tasks are taken from a counter, workers sleep when there are none.
#pragma once

#include <functional>
#include <string>

#include "geometry.h"

namespace upscore {

int thread_count();
void set_thread_count(int count);
// "1 thread", "2 threads".
std::string say_threads(int count);

// The threads of a call. Where the last one ended a moment ago the engine's own workers still look for work, and even a
// short call is worth sharing.
struct Team {
  int threads = 1;
  bool awake = false;

  // All of them, or one where there is less work than it takes to share it; 1 is what sleeping threads are worth.
  int share(double work) const {
    constexpr double kAwake = 1 / 15.0;
    return work < (awake ? kAwake : 1) ? 1 : threads;
  }
  bool operator==(const Team&) const = default;
};
Team team_of(int threads);
// Whether so many can be awake: the engine's own, each with a core.
bool can_be_awake(int threads);
// A call has ended.
void end_call();

// What a call takes whose tasks are alike, in times of a task: threads do not begin together.
inline double turns(i64 tasks, i64 threads) {
  constexpr double kLate = 0.15;
  return static_cast<double>(ceil_div(tasks, threads)) + (threads > 1 ? kLate : 0);
}

// Runs task(index) for every index in [0, count) on at most `threads` threads, the caller among them, and
// returns when all are done. May be called from several threads at once; a task must not call it again.
// Where torch is loaded, tasks run in its OpenMP threads: between torch's operators these spin, and would take
// processor time from others. After a fork the child starts a pool of its own.
void parallel_for(i64 count, int threads, const std::function<void(i64)>& task);

}  // namespace upscore
