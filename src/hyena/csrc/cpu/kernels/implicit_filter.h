// The implicit filter, h = FFN(features) * (exp(-t |delta|) + shift), and its gradient: hyena::implicit_filter.
//
// Taps are made a tile of positions at a time, every layer of a tile in the caches. Only the taps themselves are as
// long as the filter: the backward pass computes a tile's layers again, and each worker adds up its tiles' share of
// every weight's gradient.
#pragma once

#include "../simd/elementary.h"
#include "../simd/matrices.h"
#include "work.h"

namespace hyena {
namespace {

// Positions of a tile: with 64 features, a layer's input, its output and its weights fill the first cache level.
constexpr int64_t kTile = 64;

template <class T>
struct ImplicitFilter {
    static constexpr int W = Simd<T>::W, B = Panels<T>::B;
    const ImplicitFilterArgs& a;
    const int64_t layers, tiles;

    explicit ImplicitFilter(const ImplicitFilterArgs& args)
        : a(args), layers(1 + args.inner_layers), tiles((args.taps + kTile - 1) / kTile) {}

    int64_t inputs_of(int64_t layer) const { return layer == 0 ? a.features : a.width; }
    const T* weight_of(int64_t layer) const {
        return layer == 0 ? in(a.first) : in(a.inner) + (layer - 1) * a.width * a.width;
    }
    int64_t inputs_before(int64_t layer) const { return layer == 0 ? 0 : a.features + (layer - 1) * a.width; }
    static const T* in(const void* p) { return static_cast<const T*>(p); }

    // One number for each weight: of weights, or of their gradients.
    struct Weights {
        const ImplicitFilter& f;
        const int64_t wide, hidden, last;  // padded width; numbers before the hidden biases, before the output layer
        Memory<T> memory;

        explicit Weights(const ImplicitFilter& of, int64_t copies = 1)
            : f(of),
              wide(Panels<T>::padded(of.a.width)),
              hidden(of.inputs_before(of.layers) * wide),
              last(hidden + (of.layers + 1) * wide),
              memory(copies * size()) {}
        int64_t padded_channels() const { return Panels<T>::padded(f.a.channels); }
        int64_t size() const { return last + f.a.filters * (f.a.width + 1) * padded_channels(); }
        T* copy(int64_t i) const { return memory.get() + i * size(); }

        // (inputs, width), transposed: the columns are the layer's outputs.
        Panels<T> layer(int64_t l, int64_t i = 0) const {
            return {copy(i) + f.inputs_before(l) * wide, f.inputs_of(l), f.a.width};
        }
        T* bias(int64_t l, int64_t i = 0) const { return copy(i) + hidden + l * wide; }
        T* freq(int64_t i = 0) const { return bias(f.layers, i); }
        // (width, channels) of one filter.
        Panels<T> out(int64_t filter, int64_t i = 0) const {
            return {copy(i) + last + filter * f.a.width * padded_channels(), f.a.width, f.a.channels};
        }
        T* deltas(int64_t filter, int64_t i = 0) const {
            return copy(i) + last + f.a.filters * f.a.width * padded_channels() + filter * padded_channels();
        }
    };

    void pack(const Weights& to) const {
        std::memset(to.copy(0), 0, to.size() * sizeof(T));
        for (int64_t l = 0; l < layers; ++l) {
            transpose(weight_of(l), to.layer(l));
            std::memcpy(to.bias(l), in(a.biases) + l * a.width, a.width * sizeof(T));
        }
        std::memcpy(to.freq(), a.freq, a.width * sizeof(T));
        for (int64_t f = 0; f < a.filters; ++f) {
            transpose(in(a.out) + f * a.channels * a.width, to.out(f));
            for (int64_t c = 0; c < a.channels; ++c) to.deltas(f)[c] = std::abs(in(a.deltas)[f * a.channels + c]);
        }
    }
    static void transpose(const T* from, const Panels<T>& to) {
        for (int64_t column = 0; column < to.columns; ++column)
            for (int64_t row = 0; row < to.rows; ++row) to.at(row, column) = from[column * to.rows + row];
    }
    static void add_transposed(const Panels<T>& from, T* to) {
        for (int64_t column = 0; column < from.columns; ++column)
            for (int64_t row = 0; row < from.rows; ++row) to[column * from.rows + row] += from.at(row, column);
    }

    // Weights as the backward pass multiplies by them: the columns are the layer's inputs.
    struct Natural {
        const ImplicitFilter& f;
        Memory<T> memory;

        explicit Natural(const ImplicitFilter& of) : f(of), memory(of.natural_size()) {
            std::memset(memory.get(), 0, of.natural_size() * sizeof(T));
            for (int64_t l = 0; l < f.layers; ++l) copy(f.weight_of(l), layer(l));
            for (int64_t i = 0; i < f.a.filters; ++i) copy(in(f.a.out) + i * f.a.channels * f.a.width, out(i));
        }
        static void copy(const T* from, const Panels<T>& to) {
            for (int64_t row = 0; row < to.rows; ++row)
                for (int64_t column = 0; column < to.columns; ++column)
                    to.at(row, column) = from[row * to.columns + column];
        }
        // (width, inputs).
        Panels<T> layer(int64_t l) const {
            const int64_t before = l == 0 ? 0 : f.a.width * (padded(f.a.features) + (l - 1) * padded(f.a.width));
            return {memory.get() + before, f.a.width, f.inputs_of(l)};
        }
        // (channels, width) of one filter.
        Panels<T> out(int64_t filter) const {
            const int64_t before = f.a.width * (padded(f.a.features) + f.a.inner_layers * padded(f.a.width));
            return {memory.get() + before + filter * f.a.channels * padded(f.a.width), f.a.channels, f.a.width};
        }
    };
    static int64_t padded(int64_t columns) { return Panels<T>::padded(columns); }
    int64_t natural_size() const {
        return a.width * padded(a.features) + (a.inner_layers * a.width + a.filters * a.channels) * padded(a.width);
    }

    // What a worker keeps of one tile; the forward pass keeps one layer.
    struct Tile {
        Memory<T> input, before, after, cosines;  // features; each layer before its sine, after it, and the cosine
        Memory<T> panel, gradient, times;  // a panel of taps, of their gradient, and the gradient of time, in lanes
        Memory<T> flow;                    // the gradient of a layer and of the one below
        Tile(const ImplicitFilter& f, bool backward)
            : input(Panels<T>::size(kTile, f.a.features)),
              before(f.tile_size() * (backward ? f.layers : 1)),
              after(f.tile_size() * (backward ? f.layers : 2)),
              cosines(backward ? f.tile_size() * f.layers : 0),
              panel(kTile * B),
              gradient(backward ? kTile * B : 0),
              times(backward ? kTile * W : 0),
              flow(backward ? 2 * f.flow_size() : 0) {}
    };
    int64_t tile_size() const { return Panels<T>::size(kTile, a.width); }
    int64_t flow_size() const { return Panels<T>::size(kTile, a.width > a.features ? a.width : a.features); }
    Panels<T> hidden(T* data) const { return {data, kTile, a.width}; }
    Panels<T> input(const Tile& tile) const { return {tile.input.get(), kTile, a.features}; }

    // Calls f(tile, rows, part, memory of the worker) for every tile; which worker has which does not change from run
    // to run.
    template <class F>
    void each_tile(int parts, bool backward, F&& f) const {
        Team{a.pool, parts}.over(tiles, [&](int64_t first, int64_t end, int part) {
            const Tile memory(*this, backward);
            for (int64_t i = first; i < end; ++i) {
                const int64_t left = a.taps - i * kTile;
                f(i * kTile, left < kTile ? left : kTile, part, memory);
            }
        });
    }
    int parts() const { return tiles < a.pool.threads ? int(tiles) : a.pool.threads; }

    // The first layers of a tile, from its features to the input of the output layer.
    Panels<T> hidden_layers(const Weights& weights, const Tile& tile, int64_t t0, int64_t rows, bool keep) const {
        Panels<T> x = input(tile);
        for (int64_t p = 0; p < x.count(); ++p)
            for (int64_t t = 0; t < rows; ++t)
                for (int64_t i = 0; i < x.width(p); i += W)
                    store(x.panel(p) + t * x.width(p) + i,
                          load_lanes<T>(in(a.input) + (t0 + t) * a.features + p * B + i, lanes_of(x.used(p) - i)));
        for (int64_t l = 0; l < layers; ++l) {
            const Panels<T> before = hidden(tile.before.get() + (keep ? l : 0) * tile_size());
            const Panels<T> after = hidden(tile.after.get() + (keep ? l : l % 2) * tile_size());
            const Panels<T> cosines = hidden(tile.cosines.get() + (keep ? l : 0) * tile_size());
            for (int64_t p = 0; p < before.count(); ++p) {
                product_panel(rows, x, weights.layer(l), p, before.panel(p), false, weights.bias(l) + p * B);
                sines(before.panel(p), weights.freq() + p * B, rows, before.width(p), after.panel(p),
                      keep ? cosines.panel(p) : nullptr);
            }
            x = after;
        }
        return x;
    }

    static int lanes_of(int64_t left) { return left < W ? int(left) : W; }

    // sin(freq x) and, if there is a place for them, cosines.
    static void sines(const T* x, const T* freq, int64_t rows, int64_t width, T* sine, T* cosine) {
        Int<T> wrong{};
        for (int64_t t = 0; t < rows; ++t)
            for (int64_t i = 0; i < width; i += W) {
                Vec<T> s, c;
                wrong |= sine_cosine<T>(load(freq + i) * load(x + t * width + i), s, c);
                store(sine + t * width + i, s);
                if (cosine) store(cosine + t * width + i, c);
            }
        if (!any<T>(wrong)) return;
        for (int64_t t = 0; t < rows; ++t)
            for (int64_t i = 0; i < width; ++i) {
                const T angle = freq[i] * x[t * width + i];
                if (std::abs(angle) <= Real<T>::kFar) continue;
                sine[t * width + i] = std::sin(angle);
                if (cosine) cosine[t * width + i] = std::cos(angle);
            }
    }

    // ---- forward ------------------------------------------------------------------------------------------------

    void forward() const {
        const Weights weights(*this);
        pack(weights);
        each_tile(parts(), false, [&](int64_t t0, int64_t rows, int, const Tile& tile) {
            const Panels<T> x = hidden_layers(weights, tile, t0, rows, false);
            for (int64_t f = 0; f < a.filters; ++f) {
                const Panels<T> out = weights.out(f);
                for (int64_t p = 0; p < out.count(); ++p) {
                    product_panel(rows, x, out, p, tile.panel.get(), false);
                    T* h = static_cast<T*>(a.h) + (f * a.taps + t0) * a.channels + p * B;
                    put_under_window(tile.panel.get(), out.used(p), weights.deltas(f) + p * B, t0, rows, h);
                }
            }
        });
    }

    void put_under_window(const T* panel, int64_t used, const T* deltas, int64_t t0, int64_t rows, T* h) const {
        const T shift = T(a.shift);
        const int64_t width = padded(used);
        for (int64_t t = 0; t < rows; ++t) {
            const T time = -in(a.time)[t0 + t];
            for (int64_t i = 0; i < width; i += W) {
                const Vec<T> window = exponential<T>(time * load(deltas + i)) + shift;
                store_lanes<T>(h + t * a.channels + i, load(panel + t * width + i) * window, lanes_of(used - i));
            }
        }
    }

    // ---- backward -----------------------------------------------------------------------------------------------

    void backward() const {
        const Weights weights(*this), sums(*this, parts());
        const Natural natural(*this);
        pack(weights);
        std::memset(sums.copy(0), 0, parts() * sums.size() * sizeof(T));
        each_tile(parts(), true, [&](int64_t t0, int64_t rows, int part, const Tile& tile) {
            const Panels<T> x = hidden_layers(weights, tile, t0, rows, true);
            Panels<T> dx = hidden(tile.flow.get());
            output_layer_backward(weights, natural, sums, part, tile, x, dx, t0, rows);
            hidden_layers_backward(weights, natural, sums, part, tile, dx, t0, rows);
        });
        for (int part = 0; part < parts(); ++part) add_up(sums, part);
    }

    // From the gradient of the taps to `dx`, that of the last hidden layer; on the way, the window's own.
    void output_layer_backward(const Weights& weights, const Natural& natural, const Weights& sums, int part,
                               const Tile& tile, const Panels<T>& x, const Panels<T>& dx, int64_t t0,
                               int64_t rows) const {
        T* const gradient = tile.gradient.get();
        if (a.dtime) std::memset(tile.times.get(), 0, kTile * W * sizeof(T));
        if (a.filters * a.channels == 0) std::memset(tile.flow.get(), 0, flow_size() * sizeof(T));
        for (int64_t f = 0; f < a.filters; ++f) {
            const Panels<T> out = weights.out(f), back = natural.out(f);
            for (int64_t p = 0; p < out.count(); ++p) {
                const int64_t used = out.used(p), width = out.width(p);
                const T* deltas = weights.deltas(f) + p * B;
                const T* dh = in(a.dh) + (f * a.taps + t0) * a.channels + p * B;
                if (a.dtime) {
                    product_panel(rows, x, out, p, tile.panel.get(), false);
                    window_backward(tile, used, deltas, t0, rows, dh, sums.deltas(f, part) + p * B);
                }
                for (int64_t t = 0; t < rows; ++t)
                    for (int64_t i = 0; i < width; i += W) {
                        const Vec<T> window = exponential<T>(-in(a.time)[t0 + t] * load(deltas + i)) + T(a.shift);
                        store(gradient + t * width + i,
                              load_lanes<T>(dh + t * a.channels + i, lanes_of(used - i)) * window);
                    }
                add_transposed_product(rows, x, gradient, sums.out(f, part), p);
                for (int64_t q = 0; q < dx.count(); ++q)
                    multiply<T>(rows, used, Left<T>(gradient, width, 1), back.panel(q) + p * B * back.width(q),
                                back.width(q), Result<T>{dx.panel(q), dx.width(q)}, f > 0 || p > 0);
            }
        }
        if (a.dtime)
            for (int64_t t = 0; t < rows; ++t)
                static_cast<T*>(a.dtime)[t0 + t] = sum_lanes<T>(load(tile.times.get() + t * W));
    }

    // Gradients of |delta| (added) and of time (in the lanes of tile.times), from the taps before the window in
    // tile.panel.
    void window_backward(const Tile& tile, int64_t used, const T* deltas, int64_t t0, int64_t rows, const T* dh,
                         T* ddeltas) const {
        const int64_t width = padded(used);
        for (int64_t i = 0; i < width; i += W) {
            const Vec<T> delta = load(deltas + i);
            Vec<T> sum = zero<T>();
            for (int64_t t = 0; t < rows; ++t) {
                const T time = in(a.time)[t0 + t];
                const Vec<T> g = load_lanes<T>(dh + t * a.channels + i, lanes_of(used - i));
                const Vec<T> slope = -g * load(tile.panel.get() + t * width + i) * exponential<T>(-time * delta);
                sum += time * slope;
                store(tile.times.get() + t * W, load(tile.times.get() + t * W) + delta * slope);
            }
            store(ddeltas + i, load(ddeltas + i) + sum);
        }
    }

    void hidden_layers_backward(const Weights& weights, const Natural& natural, const Weights& sums, int part,
                                const Tile& tile, Panels<T> dx, int64_t t0, int64_t rows) const {
        T* other = tile.flow.get() + flow_size();
        for (int64_t l = layers - 1; l >= 0; --l) {
            const Panels<T> x = l == 0 ? input(tile) : hidden(tile.after.get() + (l - 1) * tile_size());
            const Panels<T> layer = sums.layer(l, part), back = natural.layer(l);
            for (int64_t p = 0; p < dx.count(); ++p) {
                const int64_t at = l * tile_size() + p * B * kTile, width = dx.width(p);
                for (int64_t i = 0; i < width; i += W)
                    sine_backward(dx.panel(p) + i, tile.cosines.get() + at + i, tile.before.get() + at + i, width, rows,
                                  load(weights.freq() + p * B + i), sums.bias(l, part) + p * B + i,
                                  sums.freq(part) + p * B + i);
                add_transposed_product(rows, x, dx.panel(p), layer, p);
            }
            if (l == 0 && !a.dinput) return;
            const Panels<T> below{other, kTile, inputs_of(l)};
            for (int64_t p = 0; p < below.count(); ++p) product_panel(rows, dx, back, p, below.panel(p), false);
            other = dx.data;
            dx = below;
        }
        for (int64_t t = 0; t < rows; ++t)
            for (int64_t i = 0; i < a.features; ++i) static_cast<T*>(a.dinput)[(t0 + t) * a.features + i] = dx.at(t, i);
    }

    // Turns the gradient of sin(freq x) into that of x, in place, for a vector of columns; adds those of the bias and
    // of freq.
    static void sine_backward(T* gradient, const T* cosine, const T* x, int64_t width, int64_t rows, Vec<T> freq,
                              T* dbias, T* dfreq) {
        Vec<T> bias = zero<T>(), frequency = zero<T>();
        for (int64_t t = 0; t < rows; ++t) {
            const Vec<T> g = load(gradient + t * width) * load(cosine + t * width);
            frequency += g * load(x + t * width);
            bias += g * freq;
            store(gradient + t * width, g * freq);
        }
        store(dbias, load(dbias) + bias);
        store(dfreq, load(dfreq) + frequency);
    }

    // A worker's sums into the results.
    void add_up(const Weights& sums, int part) const {
        const auto add = [](const T* from, int64_t count, T* to) {
            for (int64_t i = 0; i < count; ++i) to[i] += from[i];
        };
        for (int64_t l = 0; l < layers; ++l) {
            T* to = l == 0 ? static_cast<T*>(a.dfirst) : static_cast<T*>(a.dinner) + (l - 1) * a.width * a.width;
            add_transposed(sums.layer(l, part), to);
            add(sums.bias(l, part), a.width, static_cast<T*>(a.dbiases) + l * a.width);
        }
        add(sums.freq(part), a.width, static_cast<T*>(a.dfreq));
        for (int64_t f = 0; f < a.filters; ++f) {
            add_transposed(sums.out(f, part), static_cast<T*>(a.dout) + f * a.channels * a.width);
            if (!a.ddeltas) continue;
            for (int64_t c = 0; c < a.channels; ++c) {
                const T delta = in(a.deltas)[f * a.channels + c];
                const T sign = delta > 0 ? T(1) : delta < 0 ? T(-1) : T(0);
                static_cast<T*>(a.ddeltas)[f * a.channels + c] += sign * sums.deltas(f, part)[c];
            }
        }
    }
};

}  // namespace
}  // namespace hyena
