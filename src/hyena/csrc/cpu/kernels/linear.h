// A linear layer over the positions of long sequences, y = u W^T + b, and the gradients of W and b: hyena::project,
// project_channel_blocked and project_from_channel_blocked.
#pragma once

#include "../simd/matrices.h"
#include "sequences.h"
#include "work.h"

namespace hyena {
namespace {

// Positions of a task: with 256 channels they fill a good part of the second cache level.
constexpr int64_t kLinearRows = 20 * kRowsAtOnce;
// Inputs that are multiplied before the sums go back to memory, so that a panel of the weight stays in that level too.
constexpr int64_t kLinearDepth = 256;

template <class T>
struct Linear {
    static constexpr int W = Simd<T>::W, B = Panels<T>::B;
    // So that a panel of y, and what is multiplied at once of u, begin where a channel block does, or are inside one.
    static_assert(kLinearDepth % kLaneBlock == 0);
    static_assert(B % kLaneBlock == 0 || kLaneBlock % B == 0);
    const LinearArgs& a;

    // Parts of a row, all of one size but for the last, and each of them with whole blocks of rows of the product.
    int64_t parts() const { return (a.length + kLinearRows - 1) / kLinearRows; }
    int64_t part() const {
        const int64_t each = (a.length + parts() - 1) / parts();
        return (each + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
    }

    // Positions [first, first + rows) of a row.
    struct Rows {
        int64_t batch, first, rows;
    };
    Rows rows_of(int64_t task) const {
        const int64_t first = task % parts() * part(), left = a.length - first;
        return {task / parts(), first, left < part() ? left : part()};
    }
    static T* at(const Array& x, const Rows& rows, int64_t channel) {
        return static_cast<T*>(x.data) + rows.batch * x.batch_stride + rows.first * x.stride + x.place(channel);
    }

    void forward() const {
        const Memory<T> memory(Panels<T>::size(a.inputs, a.outputs)), bias(Panels<T>::padded(a.outputs));
        const Panels<T> weight{memory.get(), a.inputs, a.outputs};
        std::memset(bias.get(), 0, Panels<T>::padded(a.outputs) * sizeof(T));
        if (a.bias) std::memcpy(bias.get(), a.bias, a.outputs * sizeof(T));
        run(a.pool, weight.count(), [&](int64_t p) { pack(weight, p); });
        run(a.pool, a.batch * parts(), [&](int64_t task) {
            for (int64_t p = 0; p < weight.count(); ++p) forward_panel(weight, bias.get() + p * B, p, rows_of(task));
        });
    }

    void pack(const Panels<T>& weight, int64_t p) const {
        const T* from = static_cast<const T*>(a.weight) + p * B * a.weight_output_stride;
        T* to = weight.panel(p);
        for (int64_t k = 0; k < a.inputs; ++k, to += weight.width(p))
            for (int64_t n = 0; n < weight.width(p); ++n)
                to[n] = n < weight.used(p) ? from[n * a.weight_output_stride + k * a.weight_input_stride] : T(0);
    }

    void forward_panel(const Panels<T>& weight, const T* bias, int64_t p, const Rows& of) const {
        const int64_t width = weight.width(p), used = weight.used(p);
        T* y = at(a.y, of, p * B);
        alignas(64) T narrow[kLinearRows * B];  // where the last panel is wider than what is left of y
        Result<T> to = used == width ? Result<T>{y, a.y.stride, a.y.block_stride} : Result<T>{narrow, width};
        const bool is_long = a.batch * a.length * a.outputs * int64_t(sizeof(T)) > kResultInCache;
        const auto u = [&](int64_t k) {
            return Left<T>(at(a.u, of, k), a.u.stride, 1, kLaneBlock * a.u.stride, a.u.block_stride);
        };
        if (a.inputs == 0) multiply<T>(of.rows, 0, u(0), weight.panel(p), width, to, false, bias);
        for (int64_t k = 0; k < a.inputs; k += kLinearDepth) {
            const int64_t depth = a.inputs - k < kLinearDepth ? a.inputs - k : kLinearDepth;
            to.past_caches = is_long && used == width && k + depth == a.inputs;
            multiply<T>(of.rows, depth, u(k), weight.panel(p) + k * width, width, to, k > 0, bias);
        }
        if (used < width)
            for (int64_t m = 0; m < of.rows; ++m)
                std::memcpy(y + m * a.y.stride, narrow + m * width, used * sizeof(T));
    }

    // Workers share the outputs, and each goes through all rows: every sum has one writer and one order.
    void backward() const {
        const int64_t panels = (a.outputs + B - 1) / B, workers = panels < a.pool.threads ? panels : a.pool.threads;
        run(a.pool, workers, [&](int64_t worker) {
            const int64_t first = panels * worker / workers * B, end = panels * (worker + 1) / workers * B;
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
        for (int64_t task = 0; task < a.batch * parts(); ++task) {
            const Rows of = rows_of(task);
            for (int64_t p = 0; p < dweight.count(); ++p) {
                const int64_t width = dweight.width(p), used = dweight.used(p);
                for (int64_t k = 0; k < width; k += W) {
                    const T* u = at(a.u, of, p * B + k);
                    const int lanes = int(used - k < W ? used - k : W);
                    for (int64_t m = 0; m < of.rows; ++m)
                        store(inputs.get() + m * width + k, load_lanes<T>(u + m * a.u.stride, lanes));
                }
                const Left<T> gradient(at(a.y, of, 0), 1, a.y.stride, a.y.block_stride, kLaneBlock * a.y.stride);
                multiply<T>(count, of.rows, gradient.from_row(n0), inputs.get(), width,
                            Result<T>{dweight.panel(p), width}, true);
            }
            for (int64_t n = 0; n < count; n += W) {
                const T* dy = at(a.y, of, n0 + n);
                BlockedSum<T> sum;
                for (int64_t m = 0; m < of.rows; ++m)
                    sum.add(load_lanes<T>(dy + m * a.y.stride, int(count - n < W ? count - n : W)));
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
            const T* sum = bias.get() + n / W * 2 * W + n % W;
            static_cast<T*>(a.dbias)[n0 + n] = sum[0] + sum[W];
        }
    }
};

}  // namespace
}  // namespace hyena
