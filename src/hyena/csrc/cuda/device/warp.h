// Warps of a block: 32 lanes that work on matrices together, on a GPU and on the host.
//
// On a GPU a lane is a thread, its registers are its own, and every function here is an instruction or two. On the host
// a warp is one thread of control: registers are those of 32 lanes, and functions are loops over them.
//
// The nouns of this room:
// - Lanes<T, N>: N registers of each lane; each_lane(phase): runs a phase in every lane (sync_warp() before others read
//   what it wrote to memory).
// - fragment: a matrix in the registers of a warp, as the manual of PTX lays it out for mma.m16n8k16; multiply_add: one
//   such product; load_matrices: four matrices of 8 x 8 out of shared memory.
// - each_warp(block, phase): runs a phase in every warp of a block, with a barrier of the block after it.
//
// E.g. 16 rows of 16 numbers of shared memory times 16 x 8 numbers: load_matrices into a Lanes<uint32_t, 4>, 2 words of
// the other matrix in a Lanes<uint32_t, 2>, multiply_add into a Lanes<float, 4>; lane 5 then has places (1, 2), (1, 3),
// (9, 2) and (9, 3) of the sum.
#pragma once

#include "block.h"

namespace hyena::cuda {

constexpr int kLanes = 32;

template <class T, int N>
struct Lanes {
#if defined(__CUDACC__)
    T own[N];
    HYENA_DEVICE T& at(int, int i) { return own[i]; }
#else
    T all[kLanes][N];
    T& at(int lane, int i) { return all[lane][i]; }
#endif
};

template <class Phase>
HYENA_DEVICE void each_lane(Phase&& phase) {
#if defined(__CUDA_ARCH__)
    phase(int(threadIdx.x % kLanes));
#elif defined(__CUDACC__)
    (void)phase;  // nvcc's host pass: never run
#else
    for (int lane = 0; lane < kLanes; ++lane) phase(lane);
#endif
}

HYENA_DEVICE void sync_warp() {
#if defined(__CUDA_ARCH__)
    __syncwarp();
#endif
}

// The block's threads are whole warps.
template <class Phase>
HYENA_DEVICE void each_warp(const Block& block, Phase&& phase) {
#if defined(__CUDA_ARCH__)
    phase(int(threadIdx.x / kLanes));
    __syncthreads();
#elif defined(__CUDACC__)
    (void)block, (void)phase;
#else
    const int warps = block.threads / kLanes;
    for (int i = 0; i < warps; ++i) phase(block.backwards ? warps - 1 - i : i);
#endif
}

// The largest of all lanes' first registers, in every lane's.
template <class T>
HYENA_DEVICE void largest(Lanes<T, 1>& x) {
#if defined(__CUDA_ARCH__)
    if constexpr (std::is_same_v<T, int>) {
        x.own[0] = __reduce_max_sync(0xffffffffu, x.own[0]);
        return;
    }
    HYENA_UNROLL
    for (int step = kLanes / 2; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, x.own[0], step);
        x.own[0] = other > x.own[0] ? other : x.own[0];
    }
#elif !defined(__CUDACC__)
    T best = x.all[0][0];
    for (int lane = 1; lane < kLanes; ++lane) best = x.all[lane][0] > best ? x.all[lane][0] : best;
    for (int lane = 0; lane < kLanes; ++lane) x.all[lane][0] = best;
#endif
}

// c (16 x 8, float32) += a (16 x 16, fp16) b (16 x 8, fp16): registers ci … ci + 3, ai … ai + 3, and b0 and b1.
template <int NC, int NA, int NB>
HYENA_DEVICE void multiply_add(Lanes<float, NC>& c, int ci, Lanes<uint32_t, NA>& a, int ai, Lanes<uint32_t, NB>& b,
                               int b0, int b1) {
#if defined(__CUDA_ARCH__)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c.own[ci]), "+f"(c.own[ci + 1]), "+f"(c.own[ci + 2]), "+f"(c.own[ci + 3])
        : "r"(a.own[ai]), "r"(a.own[ai + 1]), "r"(a.own[ai + 2]), "r"(a.own[ai + 3]), "r"(b.own[b0]), "r"(b.own[b1]));
#elif !defined(__CUDACC__)
    float left[16][16], right[8][16];
    for (int lane = 0; lane < kLanes; ++lane) {
        const int row = lane / 4, at = lane % 4 * 2;
        for (int q = 0; q < 4; ++q) unpack<Float16>(a.all[lane][ai + q], &left[row + q % 2 * 8][at + q / 2 * 8]);
        unpack<Float16>(b.all[lane][b0], &right[row][at]);
        unpack<Float16>(b.all[lane][b1], &right[row][at + 8]);
    }
    for (int lane = 0; lane < kLanes; ++lane)
        for (int q = 0; q < 4; ++q) {
            const float *x = left[lane / 4 + q / 2 * 8], *y = right[lane % 4 * 2 + q % 2];
            float sum = 0.f;
            for (int k = 0; k < 16; ++k) sum += x[k] * y[k];
            c.all[lane][ci + q] += sum;
        }
#endif
}

// Four matrices of 8 x 8 numbers of 2 bytes into registers ai … ai + 3. row_of(lane) is the address of a row of 16
// bytes, lanes 8 q … 8 q + 7 those of matrix q. kTransposed: as if each matrix were transposed.
template <bool kTransposed = false, int N, class RowOf>
HYENA_DEVICE void load_matrices(Lanes<uint32_t, N>& a, int ai, RowOf&& row_of) {
#if defined(__CUDA_ARCH__)
    const auto at = uint32_t(__cvta_generic_to_shared(row_of(int(threadIdx.x % kLanes))));
    if constexpr (kTransposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a.own[ai]), "=r"(a.own[ai + 1]), "=r"(a.own[ai + 2]), "=r"(a.own[ai + 3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a.own[ai]), "=r"(a.own[ai + 1]), "=r"(a.own[ai + 2]), "=r"(a.own[ai + 3])
                     : "r"(at)
                     : "memory");
#elif !defined(__CUDACC__)
    for (int lane = 0; lane < kLanes; ++lane)
        for (int q = 0; q < 4; ++q) {
            uint16_t two[2];
            for (int e = 0; e < 2; ++e) {
                const int group = lane / 4, pair = lane % 4 * 2 + e;
                const int row = kTransposed ? pair : group, at = kTransposed ? group : pair;
                memcpy(&two[e], row_of(8 * q + row) + 2 * at, 2);
            }
            a.all[lane][ai + q] = two[0] | uint32_t(two[1]) << 16;
        }
#endif
}

}  // namespace hyena::cuda
