// The gated long convolution of rows that fit one block, and whole mixing steps made of it.
//
// Right angle: time t is multiplied by exp(i pi t / 2P), P >= L. What wraps around in the circular convolution of P
// points is then multiplied by i against what does not, so after untwisting the real part is the convolution: no
// padding to 2L, no unpacking of real transforms. Spectra carry the factor 1 / P; gradients come from the same
// transforms and the conjugate spectrum.
#pragma once

#include "../fft/plan.h"
#include "lines.h"

namespace hyena::cuda {

// Of Convolve: how many blocks of kManyThreads a multiprocessor has registers for. To be measured, with kManyThreads.
#ifndef HYENA_BLOCKS_TOGETHER
#define HYENA_BLOCKS_TOGETHER 3
#endif

constexpr int kMaxGates = 9;  // of an operator of order 8 with a value filter

// Spectra of F filters of G channels, each with room for `room` points: (F, G, room).
struct Spectra {
    Cx* data = nullptr;
    int64_t groups = 1, room = 1;
    int64_t width = 1;  // channels that share a filter

    HYENA_DEVICE Cx* at(int64_t filter, int64_t channel) const {
        return data + (filter * groups + (width == 1 ? channel : int64_t(uint32_t(channel) / uint32_t(width)))) * room;
    }
};

// d as a constant added to a spectrum that carries `scale`, 1 / P.
HYENA_DEVICE float skip_of(const float* d, int64_t at, float scale) { return d == nullptr ? 0.f : d[at] * scale; }

// Times a filter's spectrum (or its conjugate), in a turning pass.
template <bool kConj, int R>
HYENA_DEVICE void times_filter(Int<R>, const Strided& filter, float skip, Cx* a) {
    unrolled<R>([&](auto k) {
        const Cx f = {filter[k].re + skip, filter[k].im};
        a[k] = kConj ? times_conj(a[k], f) : a[k] * f;
    });
}

// How the threads of a block share the positions of its sets.
struct Chunks {
    const Transform& transform;
    int sets, per_set, points;

    HYENA_DEVICE Chunks(const Block& block, const Transform& t)
        : transform(t),
          sets(int(t.sets)),
          per_set(sets == 1 ? block.threads : block.threads / sets),
          points(int(t.points)) {}

    // begin(set)(t) for each of the thread's chunks, which are all of one set.
    template <class Begin>
    HYENA_DEVICE void each(int thread, Begin&& begin) const {
        const int set = sets == 1 ? 0 : thread / per_set;
        if (set >= sets) return;
        const auto chunk = begin(set);
        for (int t = (thread - set * per_set) * kChunk; t < points; t += per_set * kChunk) chunk(t);
    }

    // A chunk's real parts, from the buffer and into it. A chunk of a padded buffer lies between two gaps.
    HYENA_DEVICE void get(const Cx* buffer, int set, int t, float* x) const {
        const Cx* from = buffer + transform.pad(uint32_t(set * points + t));
        if (t + kChunk <= points) {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) x[e] = from[e].re;
        } else {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) x[e] = t + e < points ? from[e].re : 0.f;
        }
    }
    HYENA_DEVICE void put(Cx* buffer, int set, int t, const float* x) const {
        Cx* to = buffer + transform.pad(uint32_t(set * points + t));
        if (t + kChunk <= points) {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) to[e].re = x[e];
        } else {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e)
                if (t + e < points) to[e].re = x[e];
        }
    }
    // With the first few of the chunk after it, zeros behind the last.
    HYENA_DEVICE void get_ahead(const Cx* buffer, int set, int t, float* x) const {
        get(buffer, set, t, x);
        const Cx* from = buffer + transform.pad(uint32_t(set * points + t + kChunk));
        HYENA_UNROLL
        for (int e = 0; e < kHalo; ++e) x[kChunk + e] = t + kChunk + e < points ? from[e].re : 0.f;
    }
};

// y = gate[F] * conv_{F-1}(… gate[1] * conv_0(gate[0] * value)): one block, one row, `sets` channels, one pass over the
// data.
struct Convolve {
    static constexpr int kBlocksTogether = HYENA_BLOCKS_TOGETHER, kMaxRowsEach = 8;
    Sequences sequences;
    Transform transform;
    Spectra spectra;
    const float* d = nullptr;  // (F, C), or null
    int64_t channels = 0;
    int filters = 0;
    Operand value, gates[kMaxGates];
    Array y;

    // Rows that a block takes, one after the other: from the second on, spectra and tables come from the first cache
    // level.
    int64_t rows_each = 1;

    HYENA_DEVICE int64_t blocks_each() const { return (sequences.count + rows_each - 1) / rows_each; }
    int64_t channel_blocks() const { return (channels + transform.sets - 1) / transform.sets; }
    int64_t blocks() const { return channel_blocks() * blocks_each(); }

    // Neighbouring blocks have the same channels and the next rows, so that the spectra stay in the second cache level.
    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        const int64_t group = index / blocks_each(), begin = (index - group * blocks_each()) * rows_each;
        const int64_t end = begin + rows_each < sequences.count ? begin + rows_each : sequences.count;
        for (int64_t r = begin; r < end; ++r) {
            const Row row = row_of(sequences, r);
            if (row.length > 0) one_row(block, reinterpret_cast<Cx*>(shared), row, group * transform.sets);
        }
    }

  private:
    HYENA_DEVICE void one_row(const Block& block, Cx* buffer, const Row& row, int64_t first) const {
        const Chunks chunks(block, transform);
        const Transform& t = transform;
        // Each thread's own chunks: sets beyond the last channel repeat it, and are not written.
        block.each([&](int thread) {
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                return [&, set, a = Line(value, sequences, row, channel),
                        b = Line(gates[0], sequences, row, channel)](int at) {
                    float x[kChunk];
                    product(a, b, at, x);
                    chunks.put(buffer, set, at, x);
                };
            });
        });
        for (int f = 0; f < filters; ++f) {
            first_pass<Ends::kRealTwisted>(block, t, RealInBuffer{buffer}, InBuffer{buffer});
            middle_forward(block, t, buffer);
            turning_pass(block, t, buffer, [&](uint32_t set) {
                const uint32_t channel = own(first, int(set));
                return [s = spectra.at(f, channel), skip = skip_of(d, f * channels + channel, t.scale)](
                           auto radix, uint32_t index, uint32_t stride, Cx* a) {
                    times_filter<false>(radix, Strided(s, index, stride), skip, a);
                };
            });
            middle_inverse(block, t, buffer);
            first_pass_inverse<Ends::kRealTwisted>(block, t, InBuffer{buffer}, RealInBuffer{buffer});
            block.each([&](int thread) {
                chunks.each(thread, [&](int set) {
                    const uint32_t channel = own(first, set);
                    const bool last = f + 1 == filters, counts = first + set < channels;
                    return [&, set, last, counts, line = Line(gates[f + 1], sequences, row, channel),
                            to = Sink(y, row, channel)](int at) {
                        float x[kChunk];
                        chunks.get(buffer, set, at, x);
                        gate(line, at, x);
                        if (!last)
                            chunks.put(buffer, set, at, x);
                        else if (counts)
                            to.put(at, x);
                    };
                });
            });
        }
    }

    HYENA_DEVICE uint32_t own(int64_t first, int set) const {
        return uint32_t(first + set < channels ? first + set : channels - 1);
    }
};

// Sums that a gradient keeps of every channel: that of d, then taps and bias of post, pre and value.
constexpr int kPartSums = kTapGroup + 1;
constexpr int kSums = 1 + 3 * kPartSums;

// The gradient of y = post * conv(pre * value), which computes everything between again. A block has `sets` channels
// and a slice of the rows, one after the other, so that every sum over rows has one writer and one order.
struct ConvolveBackward {
    static constexpr int kBlocksTogether = 1;
    Sequences sequences;
    Transform transform;
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

    int64_t channel_blocks() const { return (channels + transform.sets - 1) / transform.sets; }
    int64_t blocks() const { return channel_blocks() * slices; }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        const Transform& t = transform;
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        float* partial = reinterpret_cast<float*>(buffer + buffer_places(t.size()));
        float* totals = partial + kSums * block.threads;
        Cx* own_spectrum = kept + index * t.size();
        const int64_t slice = index % slices, first = index / slices * t.sets;
        const Chunks chunks(block, t);
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
    HYENA_DEVICE uint32_t own(int64_t first, int set) const {
        return uint32_t(first + set < channels ? first + set : channels - 1);
    }
    HYENA_DEVICE Cx* gradient_of(int64_t slice, int64_t channel) const {
        return dspectra + (slice * channels + channel) * spectrum_stride;
    }

    // Each thread adds its own sums over all rows of the block, partial[k * threads + thread], so that threads meet
    // only once to add them up.

    // pre * value to the buffer; sums of it times dy * post, the gradient of d.
    HYENA_DEVICE void inputs(const Block& block, const Chunks& chunks, Cx* buffer, const Row& row, int64_t first,
                             float* partial) const {
        block.each([&](int thread) {
            float sum = 0.f;
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                return [&, set, a = Line(value, sequences, row, channel), b = Line(pre, sequences, row, channel),
                        up = Line(dy, sequences, row, channel), outer = Line(post, sequences, row, channel)](int at) {
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
    HYENA_DEVICE void gradient_in(const Block& block, const Chunks& chunks, Cx* buffer, const Row& row,
                                  int64_t first) const {
        block.each([&](int thread) {
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                return [&, set, up = Line(dy, sequences, row, channel),
                        outer = Line(post, sequences, row, channel)](int at) {
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
        const Transform& t = transform;
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
    HYENA_DEVICE void outer_gradient(const Block& block, const Chunks& chunks, const Cx* buffer, const Row& row,
                                     int64_t first, float* partial) const {
        if (dpost.data == nullptr) return;
        block.each([&](int thread) {
            float parts[kPartSums] = {};
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                const int length = first + set < channels ? row.length : 0;
                return [&, set, length, up = Line(dy, sequences, row, channel),
                        line = Line(post, sequences, row, channel), to = Sink(dpost, row, channel)](int at) {
                    if (at >= length) return;
                    float g[kHalo + kChunk + kHalo], c[kChunk + kHalo], x[kHalo + kChunk + kHalo];
                    const uint32_t kept = line.kept(at);
                    windows<true>(up, line, at, up.kept(at), kept, g, x);
                    chunks.get_ahead(buffer, set, at, c);
                    HYENA_UNROLL
                    for (int e = 0; e < kChunk + kHalo; ++e) c[e] *= g[kHalo + e];
                    if (adjoint)
                        put_adjoint(to, line, at, kept, c, x, parts);
                    else
                        to.put(at, c);
                };
            });
            if (!adjoint) return;
            HYENA_UNROLL
            for (int k = 0; k < kPartSums; ++k) partial[k * block.threads + thread] += parts[k];
        });
    }

    // dpre = dp * value and dvalue = dp * pre, with dp in the buffer.
    HYENA_DEVICE void inner_gradients(const Block& block, const Chunks& chunks, const Cx* buffer, const Row& row,
                                      int64_t first, float* partial) const {
        block.each([&](int thread) {
            float parts[2 * kPartSums] = {};
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                const int length = first + set < channels ? row.length : 0;
                return [&, set, length, values = Line(value, sequences, row, channel),
                        gates = Line(pre, sequences, row, channel), to_value = Sink(dvalue, row, channel),
                        to_pre = Sink(dpre, row, channel)](int at) {
                    if (at >= length) return;
                    float dp[kChunk + kHalo], xv[kHalo + kChunk + kHalo], xg[kHalo + kChunk + kHalo], v[kChunk + kHalo],
                        g[kChunk + kHalo];
                    const uint32_t kept = values.kept(at), kept_gate = gates.kept(at);
                    windows<true>(values, gates, at, kept, kept_gate, xv, xg);
                    chunks.get_ahead(buffer, set, at, dp);
                    if (!adjoint) {
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
            if (!adjoint) return;
            HYENA_UNROLL
            for (int k = 0; k < 2 * kPartSums; ++k) partial[k * block.threads + thread] += parts[k];
        });
    }
};

// Of ConvolveBackward, the kernel that has most.
constexpr Beside kBackwardBeside{kSums, kSums};

}  // namespace hyena::cuda
