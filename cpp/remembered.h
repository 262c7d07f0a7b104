// What was decided for a call, for the next one like it: training packs and plans at each step.
#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <utility>

namespace upscore {

// The answer to a question, from `find` if it has not been asked lately. Answers are pure, so a call that finds the
// memory in use finds out for itself: no call waits for another, and none hangs in the child of a fork in which another
// thread held the lock.
template <typename Question, typename Find>
auto remembered(const Question& question, Find&& find) -> decltype(find()) {
  constexpr std::size_t kMost = 192;
  struct Memory {
    std::mutex mutex;
    std::list<std::pair<Question, decltype(find())>> all;  // last used first
  };
  static Memory* const memory = new Memory;  // never destroyed, as threads may still compute at the end
  auto& [mutex, all] = *memory;
  {
    std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (lock)
      for (auto at = all.begin(); at != all.end(); ++at)
        if (at->first == question) {
          all.splice(all.begin(), all, at);
          return at->second;
        }
  }
  auto answer = find();
  std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
  if (lock) {
    all.emplace_front(question, answer);
    if (all.size() > kMost) all.pop_back();
  }
  return answer;
}

}  // namespace upscore
