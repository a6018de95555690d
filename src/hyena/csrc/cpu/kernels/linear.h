// A linear layer over the positions of long sequences, y = u W^T + b, and the gradients of W and b: hyena::project,
// project_channel_blocked and project_from_channel_blocked.
#pragma once

#include "../simd/matrices.h"
#include "../simd/transpose.h"
#include "sequences.h"
#include "work.h"

namespace hyena {
namespace {

// Positions of a task: with 256 channels they fill a good part of the second cache level.
constexpr int64_t kLinearRows = 20 * kRowsAtOnce;
// Inputs that are multiplied before the sums go back to memory, at most: a panel of the weight stays in that level too.
constexpr int64_t kLinearDepth = 768;

// Pieces of at most `each` that n is cut into; one if there is nothing.
inline int64_t pieces(int64_t n, int64_t each) { return n <= each ? 1 : (n + each - 1) / each; }

template <class T>
struct Linear {
    static constexpr int W = Simd<T>::W, B = Panels<T>::B;
    // So that a panel of y, and what is multiplied at once of u, begin where a channel block does, or are inside one.
    static_assert(B % kLaneBlock == 0 || kLaneBlock % B == 0);
    const LinearArgs& a;

    // Positions [first, first + rows) of a row.
    struct Rows {
        int64_t batch, first, rows;
    };
    // A row in parts of nearly one size, each but the last with whole blocks of rows of the product.
    struct Parts {
        static constexpr int64_t kAtMost = kLinearRows - kRowsAtOnce + 1;
        int64_t batch, length, count;

        int64_t tasks() const { return batch * count; }
        int64_t begin(int64_t part) const { return length * part / count / kRowsAtOnce * kRowsAtOnce; }
        Rows of(int64_t task) const {
            const int64_t part = task % count, first = begin(part);
            return {task / count, first, (part + 1 == count ? length : begin(part + 1)) - first};
        }
    };
    // Of forward, where no sum goes over positions: as many for every thread, where one more would be felt.
    Parts forward_parts() const {
        const int64_t threads = a.pool.threads, enough = 8 * threads;
        Parts parts{a.batch, a.length, pieces(a.length, Parts::kAtMost)};
        while (parts.tasks() < enough && parts.tasks() % threads != 0 && parts.count * kRowsAtOnce < a.length)
            ++parts.count;
        return parts;
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
        const Parts parts = forward_parts();
        run(a.pool, parts.tasks(), [&](int64_t task) { forward_part(weight, bias.get(), parts.of(task)); });
    }

    // Some inputs of all of a panel's outputs at a time: rows of the weight may be a power of two apart, and crowd into
    // a few sets of the cache.
    void pack(const Panels<T>& weight, int64_t p) const {
        constexpr int64_t kInputs = 16;
        const int64_t width = weight.width(p), used = weight.used(p), next = a.weight_output_stride;
        T* to = weight.panel(p);
        for (int64_t k = 0; k < a.inputs; k += kInputs, to += kInputs * width) {
            const int64_t count = a.inputs - k < kInputs ? a.inputs - k : kInputs;
            const T* from = static_cast<const T*>(a.weight) + p * B * next + k * a.weight_input_stride;
            if (used < width) std::memset(to, 0, count * width * sizeof(T));
            if (next == 1)
                for (int64_t i = 0; i < count; ++i)
                    std::memcpy(to + i * width, from + i * a.weight_input_stride, used * sizeof(T));
            else if (a.weight_input_stride == 1)
                transpose(from, next, used, count, to, width);
            else
                for (int64_t n = 0; n < used; ++n)
                    for (int64_t i = 0; i < count; ++i) to[i * width + n] = from[n * next + i * a.weight_input_stride];
        }
    }

    // Inputs come first and outputs second: what is multiplied of u stays in the caches.
    void forward_part(const Panels<T>& weight, const T* bias, const Rows& of) const {
        alignas(64) T narrow[kLinearRows * B];  // the last panel, where it is wider than what is left of y
        const bool is_long = a.batch * a.length * a.outputs * int64_t(sizeof(T)) > kResultInCache;
        const int64_t each = pieces(pieces(a.inputs, pieces(a.inputs, kLinearDepth)), kLaneBlock) * kLaneBlock;
        for (int64_t k = 0; k == 0 || k < a.inputs; k += each) {
            const int64_t depth = a.inputs - k < each ? a.inputs - k : each;
            const Left<T> u(at(a.u, of, k), a.u.stride, 1, kLaneBlock * a.u.stride, a.u.block_stride);
            for (int64_t p = 0; p < weight.count(); ++p) {
                const int64_t width = weight.width(p), used = weight.used(p);
                Result<T> to{narrow, width};
                if (used == width) to = {at(a.y, of, p * B), a.y.stride, a.y.block_stride};
                to.past_caches = is_long && used == width && k + depth == a.inputs;
                multiply<T>(of.rows, depth, u, weight.panel(p) + k * width, width, to, k > 0, bias + p * B);
            }
        }
        const int64_t last = weight.count() - 1, width = weight.width(last), used = weight.used(last);
        if (used == width) return;
        T* y = at(a.y, of, last * B);
        for (int64_t m = 0; m < of.rows; ++m) std::memcpy(y + m * a.y.stride, narrow + m * width, used * sizeof(T));
    }

    struct Range {
        int64_t first, end;
        int64_t count() const { return end - first; }
    };
    // One of `count` shares of so many columns, in whole panels.
    static Range share_of(int64_t columns, int64_t share, int64_t count) {
        const int64_t panels = pieces(columns, B), end = panels * (share + 1) / count * B;
        return {panels * share / count * B, end < columns ? end : columns};
    }

    // Workers share the outputs and, where there are more workers, the inputs. Each goes through all positions: every
    // sum has one writer and one order.
    void backward() const {
        const int64_t outputs = pieces(a.outputs, B), inputs = pieces(a.inputs, B), threads = a.pool.threads;
        const int64_t over = outputs < threads ? outputs : threads, left = threads / over;
        const int64_t within = inputs < left ? inputs : left;
        run(a.pool, over * within, [&](int64_t worker) {
            backward_part(share_of(a.outputs, worker / within, over), share_of(a.inputs, worker % within, within));
        });
    }

    // dweight of some outputs and inputs; with the first inputs dbias.
    void backward_part(const Range& outputs, const Range& inputs) const {
        const Memory<T> sums(Panels<T>::size(outputs.count(), inputs.count())), copy(kLinearRows * B),
            bias(2 * Panels<T>::padded(outputs.count()));
        const Panels<T> dweight{sums.get(), outputs.count(), inputs.count()};
        std::memset(bias.get(), 0, 2 * Panels<T>::padded(outputs.count()) * sizeof(T));
        const bool has_bias = inputs.first == 0;
        const Parts parts{a.batch, a.length, pieces(a.length, Parts::kAtMost)};
        if (parts.tasks() == 0) std::memset(sums.get(), 0, dweight.size() * sizeof(T));
        for (int64_t task = 0; task < parts.tasks(); ++task) {
            const Rows of = parts.of(task);
            const Left<T> gradient(at(a.y, of, 0), 1, a.y.stride, a.y.block_stride, kLaneBlock * a.y.stride);
            for (int64_t p = 0; p < dweight.count(); ++p) {
                copy_panel(dweight, p, inputs.first, of, copy.get());
                multiply<T>(outputs.count(), of.rows, gradient.from_row(outputs.first), copy.get(), dweight.width(p),
                            Result<T>{dweight.panel(p), dweight.width(p)}, task > 0);
            }
            if (has_bias) add_to_bias(outputs, of, bias.get());
        }
        for (int64_t n = 0; n < outputs.count(); ++n) {
            for (int64_t p = 0; p < dweight.count(); ++p)
                std::memcpy(static_cast<T*>(a.dweight) + (outputs.first + n) * a.inputs + inputs.first + p * B,
                            dweight.panel(p) + n * dweight.width(p), dweight.used(p) * sizeof(T));
            const T* sum = bias.get() + n / W * 2 * W + n % W;
            if (has_bias) static_cast<T*>(a.dbias)[outputs.first + n] = sum[0] + sum[W];
        }
    }

    // The inputs of panel p of dweight, whose first column is input `first`, at some positions.
    void copy_panel(const Panels<T>& dweight, int64_t p, int64_t first, const Rows& of, T* copy) const {
        const int64_t width = dweight.width(p), used = dweight.used(p);
        for (int64_t k = 0; k < width; k += W) {
            const T* u = at(a.u, of, first + p * B + k);
            const int lanes = int(used - k < W ? used - k : W);
            for (int64_t m = 0; m < of.rows; ++m)
                store(copy + m * width + k, load_lanes<T>(u + m * a.u.stride, lanes));
        }
    }

    // Sums and what was left out of them, vector by vector.
    void add_to_bias(const Range& outputs, const Rows& of, T* bias) const {
        for (int64_t n = 0; n < outputs.count(); n += W) {
            const T* dy = at(a.y, of, outputs.first + n);
            const int lanes = int(outputs.count() - n < W ? outputs.count() - n : W);
            BlockedSum<T> sum;
            for (int64_t m = 0; m < of.rows; ++m) sum.add(load_lanes<T>(dy + m * a.y.stride, lanes));
            LongSum<T> all{load(bias + 2 * n), load(bias + 2 * n + W)};
            all.add(sum.value());
            store(bias + 2 * n, all.total);
            store(bias + 2 * n + W, all.left_out);
        }
    }
};

}  // namespace
}  // namespace hyena
