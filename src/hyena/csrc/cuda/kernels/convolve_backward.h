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
    Cx* kept = nullptr;     // (blocks, sets * P): the spectrum of pre * value
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
        float* partial = reinterpret_cast<float*>(buffer + buffer_places(t.size()));
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
            inputs(block, chunks, buffer, row, first, partial);
            transforms<false>(block, buffer, own_spectrum, slice, first);
            outer_gradient(block, chunks, buffer, row, first, partial + block.threads);
            gradient_in(block, chunks, buffer, row, first);
            transforms<true>(block, buffer, own_spectrum, slice, first);
            inner_gradients(block, chunks, buffer, row, first, partial + (1 + kPartSums) * block.threads);
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

    // pre * value to the buffer; sums of it times dy * post, the gradient of d.
    HYENA_DEVICE void inputs(const Block& block, const OwnChunks& chunks, Cx* buffer, const Row& row, int64_t first,
                             float* partial) const {
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
                    if (d == nullptr) return;
                    product(up, outer, at, g);
                    HYENA_UNROLL
                    for (int e = 0; e < kChunk; ++e) sum += x[e] * g[e];
                };
            });
            partial[thread] += sum;
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

    // dpost = dy * conv(pre * value), which is in the buffer.
    HYENA_DEVICE void outer_gradient(const Block& block, const OwnChunks& chunks, const Cx* buffer, const Row& row,
                                     int64_t first, float* partial) const {
        if (dpost.data == nullptr) return;
        block.each([&](int thread) {
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
        });
    }

    // dpre = dp * value and dvalue = dp * pre, with dp in the buffer.
    HYENA_DEVICE void inner_gradients(const Block& block, const OwnChunks& chunks, const Cx* buffer, const Row& row,
                                      int64_t first, float* partial) const {
        block.each([&](int thread) {
            float parts[2 * kPartSums] = {};
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                const int length = first + set < channels ? row.length : 0;
                return [&, set, length, values = Line(Kind::of(value), Kind::of(sequences), row, channel),
                        gates = Line(Kind::of(pre), Kind::of(sequences), row, channel),
                        to_value = Sink(Kind::of(dvalue), row, channel),
                        to_pre = Sink(Kind::of(dpre), row, channel)](int at) {
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
        });
    }
};

// Of ConvolveBackward, the kernel that has most.
constexpr Beside kBackwardBeside{kSums, kSums};

}  // namespace hyena::cuda
