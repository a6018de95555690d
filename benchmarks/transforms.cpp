// Time of the CPU's transforms alone, one thread, beside what the core's additions would take: docs/kernels.md, "What
// binds the mixing step". Prints the rate at which the core adds vectors; for convolutions of P points of 16 channels,
// nanoseconds a point there and back, and the share that their additions take of it at that rate; and the rates of
// reading z of 64K positions and 256 channels in order, and 64 bytes of each position at a time.
//
//     g++ -O2 -std=c++17 -march=native -mprefer-vector-width=512 benchmarks/transforms.cpp
//         src/hyena/csrc/cpu/fft/plan.cpp -o transforms && ./transforms
//
// For processors with AVX-512.
#define HYENA_BYTES 64
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "../src/hyena/csrc/cpu/fft/right_angle.h"

using namespace hyena;

namespace {

constexpr int kWidth = Simd<float>::W, kPoint = 2 * kWidth;

// Seconds that `work` takes: the median of nine.
template <class F>
double seconds(F&& work) {
    std::vector<double> times;
    for (int i = 0; i < 10; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        work();
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    times.erase(times.begin());  // the first one warms up
    std::nth_element(times.begin(), times.begin() + 4, times.end());
    return times[4];
}

// Vectors that one core adds in a second: 8 sums that do not wait for each other.
double additions() {
    constexpr int64_t kRounds = 4000000;
    const Vec<float> step = zero<float>() + 1e-6f;
    return 8 * kRounds / seconds([&] {
               Vec<float> sums[8] = {};
               for (int64_t i = 0; i < kRounds; ++i) {
                   HYENA_UNROLL
                   for (int k = 0; k < 8; ++k) asm volatile("vaddps %1, %0, %0" : "+v"(sums[k]) : "v"(step));
               }
               asm volatile("" ::"v"(sums[0]), "v"(sums[7]));
           });
}

// Additions of vectors that a point takes, there and back.
double additions_of(const Factors<float>& factors) {
    double sum = 0;
    for (int s = 0; s < factors.stages; ++s) sum += factors.radix[s] == 8 ? 6.5 : 4;  // other radices are not asked for
    return 2 * sum;
}

void transforms(double rate) {
    std::printf("%8s %12s %10s %20s\n", "points", "as", "ns/point", "additions' share");
    for (const int64_t points : {64, 256, 1024, 4096, 16384, 65536}) {
        const HeldPlan<float> plan(points);
        const Passes<float> passes{*plan};
        std::vector<float> buffer(passes.buffer() * kPoint, 0.5f), local(passes.scratch() * kPoint + kPoint),
            spectrum(points * kPoint, 0.01f), in(points * kWidth, 1.f), out(points * kWidth);
        const int64_t rounds = std::max<int64_t>(1, 200000 / points);
        const double time = seconds([&] {
            for (int64_t r = 0; r < rounds; ++r) {
                passes.columns_in(buffer.data(), 0, passes.p2(), local.data(),
                                  [&](int64_t t) HYENA_LAMBDA { return load(in.data() + t * kWidth); });
                passes.rows_through(buffer.data(), 0, passes.p1(), [&](int64_t k, Cx<float> v) HYENA_LAMBDA {
                    return times(v, load_cx(spectrum.data() + k * kPoint));
                });
                passes.columns_out(buffer.data(), 0, passes.p2(), local.data(),
                                   [&](int64_t t, Cx<float> v) HYENA_LAMBDA { store(out.data() + t * kWidth, v.re); });
            }
        });
        const double each = time / double(rounds * points);
        const double least = (additions_of(passes.plan.column) + additions_of(passes.plan.row)) / rate;
        std::printf("%8ld %5ld x %4ld %10.1f %20.2f\n", long(points), long(passes.p1()), long(passes.p2()), each * 1e9,
                    least / each);
    }
}

void memory() {
    constexpr int64_t kPositions = 65536, kStep = 3 * 256;  // z of 256 channels, order 2
    std::vector<float> z(kPositions * kStep, 1.f);
    const double bytes = double(z.size()) * sizeof(float);
    const double in_order = seconds([&] {
        Vec<float> sum = zero<float>();
        for (size_t i = 0; i < z.size(); i += kWidth) sum += load(z.data() + i);
        asm volatile("" ::"v"(sum));
    });
    const double by_group = seconds([&] {
        Vec<float> sum = zero<float>();
        for (int64_t group = 0; group < kStep; group += kWidth)
            for (int64_t t = 0; t < kPositions; ++t) {
                const float* at = z.data() + t * kStep + group;
                if (t + kReadAhead < kPositions) __builtin_prefetch(at + kReadAhead * kStep, 0, 2);
                sum += load(at);
            }
        asm volatile("" ::"v"(sum));
    });
    std::printf("memory read in order %.0f GB/s, 64 bytes of each position %.0f GB/s\n", bytes / in_order / 1e9,
                bytes / by_group / 1e9);
}

}  // namespace

int main() {
    const double rate = additions();
    std::printf("additions of %d lanes: %.1f billion a second\n", kWidth, rate / 1e9);
    transforms(rate);
    memory();
}
