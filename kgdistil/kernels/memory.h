// No exception may leave a parallel region, or this library: what runs out of memory is caught and told by a result.
#pragma once
#include <atomic>
#include <new>
#include <stdexcept>

struct Memory {
    std::atomic<bool> out{false};
    template <class Work> bool enough_for(Work work) {  // whether the work was done
        try {
            work();
            return true;
        } catch (const std::bad_alloc&) {
        } catch (const std::length_error&) {
        }
        out = true;
        return false;
    }
};
