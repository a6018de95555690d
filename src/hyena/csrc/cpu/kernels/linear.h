// A linear layer over the rows of long sequences, y = u W^T + b, and the gradients of W and b: hyena::project.
#pragma once

#include "../simd/matrices.h"
#include "work.h"

namespace hyena {
namespace {

// Rows of a task: with 256 channels they fill a good part of the second cache level.
constexpr int64_t kLinearRows = 20 * kRowsAtOnce;
// Inputs that are multiplied before the sums go back to memory, so that a panel of the weight stays in that level too.
constexpr int64_t kLinearDepth = 256;

template <class T>
struct Linear {
    static constexpr int W = Simd<T>::W, B = Panels<T>::B;
    const LinearArgs& a;

    void forward() const {
        const Memory<T> memory(Panels<T>::size(a.inputs, a.outputs)), bias(Panels<T>::padded(a.outputs));
        const Panels<T> weight{memory.get(), a.inputs, a.outputs};
        std::memset(bias.get(), 0, Panels<T>::padded(a.outputs) * sizeof(T));
        if (a.bias) std::memcpy(bias.get(), a.bias, a.outputs * sizeof(T));
        run(a.pool, weight.count(), [&](int64_t p) { pack(weight, p); });
        const int64_t tasks = (a.rows + kLinearRows - 1) / kLinearRows;
        run(a.pool, tasks, [&](int64_t i) {
            const int64_t first = i * kLinearRows, left = a.rows - first,
                          rows = left < kLinearRows ? left : kLinearRows;
            for (int64_t p = 0; p < weight.count(); ++p) forward_panel(weight, bias.get() + p * B, p, first, rows);
        });
    }

    void pack(const Panels<T>& weight, int64_t p) const {
        const T* from = static_cast<const T*>(a.weight) + p * B * a.weight_output_stride;
        T* to = weight.panel(p);
        for (int64_t k = 0; k < a.inputs; ++k, to += weight.width(p))
            for (int64_t n = 0; n < weight.width(p); ++n)
                to[n] = n < weight.used(p) ? from[n * a.weight_output_stride + k * a.weight_input_stride] : T(0);
    }

    void forward_panel(const Panels<T>& weight, const T* bias, int64_t p, int64_t first, int64_t rows) const {
        const int64_t width = weight.width(p), used = weight.used(p);
        const T* u = static_cast<const T*>(a.u.data) + first * a.u.stride;
        T* y = static_cast<T*>(a.y.data) + first * a.y.stride + p * B;
        alignas(64) T narrow[kLinearRows * B];  // where the last panel is wider than what is left of y
        T* to = used == width ? y : narrow;
        const int64_t step = used == width ? a.y.stride : width;
        if (a.inputs == 0) multiply<T>(rows, 0, u, 0, 0, weight.panel(p), width, to, step, false, bias);
        for (int64_t k = 0; k < a.inputs; k += kLinearDepth) {
            const int64_t depth = a.inputs - k < kLinearDepth ? a.inputs - k : kLinearDepth;
            multiply<T>(rows, depth, u + k, a.u.stride, 1, weight.panel(p) + k * width, width, to, step, k > 0, bias);
        }
        if (used < width)
            for (int64_t m = 0; m < rows; ++m) std::memcpy(y + m * a.y.stride, narrow + m * width, used * sizeof(T));
    }

    // Workers share the outputs, and each goes through all rows: every sum has one writer and one order.
    void backward() const {
        const int64_t blocks = (a.outputs + B - 1) / B, parts = blocks < a.pool.threads ? blocks : a.pool.threads;
        run(a.pool, parts, [&](int64_t part) {
            const int64_t first = blocks * part / parts * B, end = blocks * (part + 1) / parts * B;
            backward_part(first, end < a.outputs ? end : a.outputs);
        });
    }

    // dweight and dbias of outputs [n0, n1).
    void backward_part(int64_t n0, int64_t n1) const {
        const int64_t count = n1 - n0;
        const Memory<T> sums(Panels<T>::size(count, a.inputs)), inputs(kLinearRows * B),
            bias(2 * Panels<T>::padded(count));
        const Panels<T> dweight{sums.get(), count, a.inputs};
        std::memset(sums.get(), 0, dweight.size() * sizeof(T));
        std::memset(bias.get(), 0, 2 * Panels<T>::padded(count) * sizeof(T));
        for (int64_t first = 0; first < a.rows; first += kLinearRows) {
            const int64_t rows = a.rows - first < kLinearRows ? a.rows - first : kLinearRows;
            const T* dy = static_cast<const T*>(a.y.data) + first * a.y.stride + n0;
            for (int64_t p = 0; p < dweight.count(); ++p) {
                const int64_t width = dweight.width(p), used = dweight.used(p);
                const T* u = static_cast<const T*>(a.u.data) + first * a.u.stride + p * B;
                for (int64_t m = 0; m < rows; ++m)
                    for (int64_t k = 0; k < width; k += W)
                        store(inputs.get() + m * width + k,
                              load_lanes<T>(u + m * a.u.stride + k, int(used - k < W ? used - k : W)));
                multiply<T>(count, rows, dy, 1, a.y.stride, inputs.get(), width, dweight.panel(p), width, true);
            }
            for (int64_t n = 0; n < count; n += W) {
                BlockedSum<T> sum;
                for (int64_t m = 0; m < rows; ++m)
                    sum.add(load_lanes<T>(dy + m * a.y.stride + n, int(count - n < W ? count - n : W)));
                LongSum<T> all{load(bias.get() + 2 * n), load(bias.get() + 2 * n + W)};
                all.add(sum.value());
                store(bias.get() + 2 * n, all.total);
                store(bias.get() + 2 * n + W, all.left_out);
            }
        }
        for (int64_t n = 0; n < count; ++n) {
            for (int64_t p = 0; p < dweight.count(); ++p)
                std::memcpy(static_cast<T*>(a.dweight) + (n0 + n) * a.inputs + p * B,
                            dweight.panel(p) + n * dweight.width(p), dweight.used(p) * sizeof(T));
            const T* at = bias.get() + n / W * 2 * W + n % W;
            static_cast<T*>(a.dbias)[n0 + n] = at[0] + at[W];
        }
    }
};

}  // namespace
}  // namespace hyena
