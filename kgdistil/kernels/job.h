// What Python hands to rank.cpp and scan.cpp: `Job` of kernels/rank.py, whose size it compares with `kgd_sizes`.
#pragma once
#include <cstdint>

template <class Stored> struct JobOf {
    const Stored* entities;  // as `kgd_tiles` lays them out
    const float* queries;    // [n, QW]; of scan.cpp see there
    const int64_t* target;   // [n] entity ids (ranks only)
    const int64_t *known_start, *known_end;  // [n] spans of `known`
    const int32_t* known;    // ids to leave out, ascending within a span
    int64_t n, num_entities;
    int32_t threads, k;
    int32_t *greater, *equal;  // out (ranks)
    float* best_score;         // out (top-k) [n, k], descending; −inf past the last candidate
    int32_t* best;             // out (top-k) [n, k]; −1 past the last candidate
    const float* book;         // of scan.cpp alone: [M, size, 16] or null
    const int32_t* columns;    // [M·size]: where in a vector the numbers are that the book wants
    int64_t size;              // of a group
};
extern "C" void kgd_sizes(int64_t* out) { out[0] = sizeof(JobOf<float>); }
