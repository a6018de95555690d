// Its gradient: ConvolveBackward.
#pragma once

#include "one_block.h"

namespace hyena::cuda {

// Sums that a gradient keeps of every channel: that of d, then taps and bias of post, pre and value.
constexpr int kPartSums = kTapGroup + 1;
constexpr int kSums = 1 + 3 * kPartSums;

// The gradient of y = post * conv(pre * value), which computes everything between again. A block has `sets` channels
// and a slice of the rows, one after the other, so that every sum over rows has one writer and one order.
struct ConvolveBackwardArguments {
    Sequences sequences;
    Spectra spectra;
    const float* d = nullptr;  // (C), or null
    int64_t channels = 0;
    int64_t slices = 1;
    Operand value, pre, post, dy;
    // With `adjoint`, gradients of z through its short convolution (of up to four taps); else those of the parts
    // themselves.
    bool adjoint = false;
    Array dvalue, dpre, dpost;
    Cx* dspectra = nullptr;  // (slices, C, spectrum_stride)
    int64_t spectrum_stride = 0;
    float* sums = nullptr;  // (slices, C, kSums)
    Cx* kept = nullptr;     // (blocks, sets * P): the spectrum of pre * value; not with a pair
};

template <class Kind>
struct ConvolveBackward : ConvolveBackwardArguments {
    using Arguments = ConvolveBackwardArguments;
    static constexpr int kOwnThreads = Kind::kThreads;
    static constexpr int kBlocksTogether = kOwnThreads == 0 ? 1 : kMaxThreads / kOwnThreads;
    typename Kind::OwnTransform transform;

    int64_t channel_blocks() const { return (channels + transform.sets - 1) / transform.sets; }
    int64_t blocks() const { return channel_blocks() * slices; }

    HYENA_DEVICE void operator()(const Block& any_block, char* shared, int64_t index) const {
        const Block block = block_of<Kind>(any_block);
        const auto& t = transform;
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        float* partial = reinterpret_cast<float*>(buffer + buffer_places(t.size() * (Kind::kPair ? 2 : 1)));
        float* totals = partial + kSums * block.threads;
        Cx* own_spectrum = kept + index * t.size();
        const int64_t slice = index % slices, first = index / slices * t.sets;
        const OwnChunks chunks(block, t);
        block.each([&](int thread) {
            HYENA_UNROLL
            for (int k = 0; k < kSums; ++k) partial[k * block.threads + thread] = 0.f;
            for (int i = thread; i < int(t.sets) * kSums; i += block.threads) totals[i] = 0.f;
            for (int64_t set = 0; set < t.sets && first + set < channels; ++set)
                for (int64_t k = thread; k < spectrum_stride; k += block.threads)
                    gradient_of(slice, first + set)[k] = {0.f, 0.f};
        });
        const int64_t begin = sequences.count * slice / slices, end = sequences.count * (slice + 1) / slices;
        for (int64_t r = begin; r < end; ++r) {
            const Row row = row_of(sequences, r);
            if (row.length == 0) continue;
            const Row next = r + 1 < end ? row_of(sequences, r + 1) : Row{0, 0, 0};
            float *outer_sums = partial + block.threads, *inner_sums = outer_sums + kPartSums * block.threads;
            if constexpr (Kind::kPair) {
                const auto both = t.twice();
                Cx* second = buffer + t.pad(t.size());  // of the gradient
                inputs(block, chunks, buffer, second, row, next, first, partial);
                first_pass<Ends::kRealTwisted>(block, both, RealInBuffer{buffer}, InBuffer{buffer});
                middle_forward(block, both, buffer);
                turn_both(block, buffer, second, slice, first);
                middle_inverse(block, both, buffer);
                first_pass_inverse<Ends::kRealTwisted>(block, both, InBuffer{buffer}, RealInBuffer{buffer});
                block.each([&](int thread) {
                    outer_gradient(block, thread, chunks, buffer, row, first, outer_sums);
                    inner_gradients(block, thread, chunks, second, row, first, inner_sums);
                });
            } else {
                inputs(block, chunks, buffer, nullptr, row, next, first, partial);
                transforms<false>(block, buffer, own_spectrum, slice, first);
                if (dpost.data != nullptr)
                    block.each(
                        [&](int thread) { outer_gradient(block, thread, chunks, buffer, row, first, outer_sums); });
                gradient_in(block, chunks, buffer, row, first);
                transforms<true>(block, buffer, own_spectrum, slice, first);
                block.each([&](int thread) { inner_gradients(block, thread, chunks, buffer, row, first, inner_sums); });
            }
        }
        add_up<kSums>(block, chunks.sets, chunks.per_set, partial, totals);
        block.each([&](int thread) {
            for (int i = thread; i < int(t.sets) * kSums; i += block.threads)
                if (first + i / kSums < channels) sums[(slice * channels + first) * kSums + i] = totals[i];
        });
    }

  private:
    using OwnChunks = Chunks<typename Kind::OwnTransform>;

    HYENA_DEVICE uint32_t own(int64_t first, int set) const {
        return uint32_t(first + set < channels ? first + set : channels - 1);
    }
    HYENA_DEVICE Cx* gradient_of(int64_t slice, int64_t channel) const {
        return dspectra + (slice * channels + channel) * spectrum_stride;
    }

    // Each thread adds its own sums over all rows of the block, partial[k * threads + thread], so that threads meet
    // only once to add them up.

    // pre * value to the buffer; sums of it times dy * post, the gradient of d. With a pair, dy * post to the second
    // buffer. Reads ahead of the next row.
    HYENA_DEVICE void inputs(const Block& block, const OwnChunks& chunks, Cx* buffer, [[maybe_unused]] Cx* second,
                             const Row& row, const Row& next, int64_t first, float* partial) const {
        block.each([&](int thread) {
            float sum = 0.f;
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                return [&, set, a = Line(Kind::of(value), Kind::of(sequences), row, channel),
                        b = Line(Kind::of(pre), Kind::of(sequences), row, channel),
                        up = Line(Kind::plain(dy), Kind::of(sequences), row, channel),
                        outer = Line(Kind::of(post), Kind::of(sequences), row, channel)](int at) {
                    float x[kChunk], g[kChunk];
                    product(a, b, at, x);
                    chunks.put(buffer, set, at, x);
                    if (!Kind::kPair && d == nullptr) return;
                    product(up, outer, at, g);
                    if constexpr (Kind::kPair) chunks.put(second, set, at, g);
                    HYENA_UNROLL
                    for (int e = 0; e < kChunk; ++e) sum += x[e] * g[e];
                };
            });
            partial[thread] += sum;
            const auto channel = [&](int set) { return own(first, set); };
            chunks.prefetch(thread, Kind::of(value), next, channel);
            chunks.prefetch(thread, Kind::of(pre), next, channel);
            chunks.prefetch(thread, Kind::plain(dy), next, channel);
            chunks.prefetch(thread, Kind::of(post), next, channel);
        });
    }

    // The gradient of the convolution's output, dy * post, to the buffer.
    HYENA_DEVICE void gradient_in(const Block& block, const OwnChunks& chunks, Cx* buffer, const Row& row,
                                  int64_t first) const {
        block.each([&](int thread) {
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                return [&, set, up = Line(Kind::plain(dy), Kind::of(sequences), row, channel),
                        outer = Line(Kind::of(post), Kind::of(sequences), row, channel)](int at) {
                    float g[kChunk];
                    product(up, outer, at, g);
                    chunks.put(buffer, set, at, g);
                };
            });
        });
    }

    // The convolution of the buffer, whose spectrum is kept; or its adjoint, with the gradient of the filter's
    // spectrum.
    template <bool kAdjoint>
    HYENA_DEVICE void transforms(const Block& block, Cx* buffer, Cx* own_spectrum, int64_t slice, int64_t first) const {
        const auto& t = transform;
        first_pass<Ends::kRealTwisted>(block, t, RealInBuffer{buffer}, InBuffer{buffer});
        middle_forward(block, t, buffer);
        turning_pass(block, t, buffer, [&](uint32_t set) {
            const uint32_t channel = own(first, int(set));
            const bool counts = first + set < channels;
            return [counts, s = spectra.at(0, channel), skip = skip_of(d, channel, t.scale),
                    keep = own_spectrum + set * t.points,
                    sum = gradient_of(slice, channel)](auto radix, uint32_t index, uint32_t stride, Cx* a) {
                constexpr int R = decltype(radix)::value;
                const Strided kept_at(keep, index, stride), filter(s, index, stride);
                if constexpr (!kAdjoint) {
                    unrolled<R>([&](auto k) { kept_at[k] = a[k]; });
                } else if (counts) {
                    add_products<R>(Strided(sum, index, stride), a, kept_at);
                }
                times_filter<kAdjoint>(radix, filter, skip, a);
            };
        });
        if (!kAdjoint && dpost.data == nullptr) return;  // nobody asks for the convolution itself
        middle_inverse(block, t, buffer);
        first_pass_inverse<Ends::kRealTwisted>(block, t, InBuffer{buffer}, RealInBuffer{buffer});
    }

    // The last pass of both transforms and the first one back, with the product in between: the spectrum of the
    // gradient goes back to the buffer while that of the input is in registers.
    HYENA_DEVICE void turn_both(const Block& block, Cx* buffer, Cx* second, int64_t slice, int64_t first) const {
        const auto& t = transform;
        with_pass(t, last_of(t), [&](auto radix, const auto& pass) {
            constexpr int R = decltype(radix)::value, kTogether = 4;
            constexpr uint32_t each = std::decay_t<decltype(pass)>::blocks;
            block.each([&](int thread) {
                for (uint32_t j = uint32_t(thread); j < t.size() / R; j += uint32_t(block.threads)) {
                    const uint32_t set = j / each, index = j - set * each, channel = own(first, int(set));
                    const bool counts = first + set < channels;
                    const float skip = skip_of(d, channel, t.scale);
                    Cx *x = buffer + t.pad(j * R), *y = second + t.pad(j * R);
                    Cx a[R], w[R];
                    powers<R>(pass, index, w);
                    forward<R>(y, w, a);
                    unrolled<R>([&](auto k) { y[k] = a[k]; });
                    forward<R>(x, w, a);
                    const Strided filter(spectra.at(0, channel), index, each),
                        sum(gradient_of(slice, channel), index, each);
                    unrolled<R / kTogether>([&](auto group) {
                        constexpr int from = decltype(group)::value * kTogether;
                        Cx f[kTogether], had[kTogether];
                        unrolled<kTogether>([&](auto k) {
                            f[k] = filter[from + k];
                            had[k] = sum[from + k];
                        });
                        unrolled<kTogether>([&](auto e) {
                            constexpr int k = from + decltype(e)::value;
                            const Cx g = y[k], whole = {f[e].re + skip, f[e].im};
                            if (counts) sum[k] = had[e] + times_conj(g, a[k]);
                            y[k] = times_conj(g, whole);
                            a[k] = a[k] * whole;
                        });
                    });
                    inverse<R>(a, w, x);
                    unrolled<R>([&](auto k) { a[k] = y[k]; });
                    inverse<R>(a, w, y);
                }
            });
        });
    }
    template <int R>
    HYENA_DEVICE static void forward(const Cx* x, const Cx* w, Cx* a) {
        unrolled<R>([&](auto k) {
            a[k] = x[k];
            if constexpr (k > 0) a[k] = a[k] * w[k];
        });
        butterfly<R, false>(a);
    }
    template <int R>
    HYENA_DEVICE static void inverse(Cx* a, const Cx* w, Cx* x) {
        butterfly<R, true>(a);
        unrolled<R>([&](auto k) { x[k] = k > 0 ? times_conj(a[k], w[k]) : a[k]; });
    }

    // dpost = dy * conv(pre * value), which is in the buffer.
    HYENA_DEVICE void outer_gradient(const Block& block, int thread, const OwnChunks& chunks, const Cx* buffer,
                                     const Row& row, int64_t first, float* partial) const {
        if (dpost.data == nullptr) return;
        float parts[kPartSums] = {};
        chunks.each(thread, [&](int set) {
            const uint32_t channel = own(first, set);
            const int length = first + set < channels ? row.length : 0;
            return [&, set, length, up = Line(Kind::plain(dy), Kind::of(sequences), row, channel),
                    line = Line(Kind::of(post), Kind::of(sequences), row, channel),
                    to = Sink(Kind::of(dpost), row, channel)](int at) {
                if (at >= length) return;
                float g[kHalo + kChunk + kHalo], c[kChunk + kHalo], x[kHalo + kChunk + kHalo];
                const uint32_t kept = line.kept(at);
                windows<true>(up, line, at, up.kept(at), kept, g, x);
                chunks.get_ahead(buffer, set, at, c);
                HYENA_UNROLL
                for (int e = 0; e < kChunk + kHalo; ++e) c[e] *= g[kHalo + e];
                if (Kind::is_adjoint(adjoint))
                    put_adjoint(to, line, at, kept, c, x, parts);
                else
                    to.put(at, c);
            };
        });
        if (!Kind::is_adjoint(adjoint)) return;
        HYENA_UNROLL
        for (int k = 0; k < kPartSums; ++k) partial[k * block.threads + thread] += parts[k];
    }

    // dpre = dp * value and dvalue = dp * pre, with dp in the buffer.
    HYENA_DEVICE void inner_gradients(const Block& block, int thread, const OwnChunks& chunks, const Cx* buffer,
                                      const Row& row, int64_t first, float* partial) const {
        float parts[2 * kPartSums] = {};
        chunks.each(thread, [&](int set) {
            const uint32_t channel = own(first, set);
            const int length = first + set < channels ? row.length : 0;
            return
                [&, set, length, values = Line(Kind::of(value), Kind::of(sequences), row, channel),
                 gates = Line(Kind::of(pre), Kind::of(sequences), row, channel),
                 to_value = Sink(Kind::of(dvalue), row, channel), to_pre = Sink(Kind::of(dpre), row, channel)](int at) {
                    if (at >= length) return;
                    float dp[kChunk + kHalo], xv[kHalo + kChunk + kHalo], xg[kHalo + kChunk + kHalo], v[kChunk + kHalo],
                        g[kChunk + kHalo];
                    const uint32_t kept = values.kept(at), kept_gate = gates.kept(at);
                    windows<true>(values, gates, at, kept, kept_gate, xv, xg);
                    chunks.get_ahead(buffer, set, at, dp);
                    if (!Kind::is_adjoint(adjoint)) {
                        if (gates.given) {
                            values.finish(at, kept, xv, v);
                            gates.finish(at, kept_gate, xg, g);
                            HYENA_UNROLL
                            for (int e = 0; e < kChunk; ++e) {
                                v[e] *= dp[e];
                                dp[e] *= g[e];
                            }
                            to_pre.put(at, v);
                        }
                        to_value.put(at, dp);
                        return;
                    }
                    if (gates.given) {
                        values.convolve<kHalo>(kept, xv, v);
                        gates.convolve<kHalo>(kept_gate, xg, g);
                        HYENA_UNROLL
                        for (int e = 0; e < kChunk + kHalo; ++e) {
                            v[e] *= dp[e];
                            dp[e] *= g[e];
                        }
                        put_adjoint(to_pre, gates, at, kept_gate, v, xg, parts);
                    }
                    put_adjoint(to_value, values, at, kept, dp, xv, parts + kPartSums);
                };
        });
        if (!Kind::is_adjoint(adjoint)) return;
        HYENA_UNROLL
        for (int k = 0; k < 2 * kPartSums; ++k) partial[k * block.threads + thread] += parts[k];
    }
};

// Of ConvolveBackward, the kernel that has most.
constexpr Beside kBackwardBeside{kSums, kSums};

}  // namespace hyena::cuda
