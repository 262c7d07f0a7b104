// A small pool: tasks are taken from a counter, workers sleep when there are none.
#pragma once

#include <functional>

#include "geometry.h"

namespace upscore {

int thread_count();
void set_thread_count(int count);

// From now on, tasks run in the threads of the OpenMP runtime that `library`, which is loaded already, uses: where
// calls alternate with that library's own, its threads still spin, and would take processor time from other workers.
// False, and nothing changes, where there is no such library or runtime.
bool share_threads(const char* library);

// Runs task(index) for every index in [0, count) on at most `threads` threads, the caller among them, and
// returns when all are done. May be called from several threads at once; a task must not call it again.
// After a fork the child starts a pool of its own.
void parallel_for(i64 count, int threads, const std::function<void(i64)>& task);

}  // namespace upscore
