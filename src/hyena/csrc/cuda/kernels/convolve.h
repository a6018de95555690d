// The gated long convolution of rows that fit one block: Convolve.
#pragma once

#include "one_block.h"

namespace hyena::cuda {

// y = gate[F] * conv_{F-1}(… gate[1] * conv_0(gate[0] * value)): one block, one row, `sets` channels, one pass over the
// data.
struct ConvolveArguments {
    static constexpr int kMaxRowsEach = 4;
    Sequences sequences;
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
};

template <class Kind>
struct Convolve : ConvolveArguments {
    using Arguments = ConvolveArguments;
    static constexpr int kOwnThreads = Kind::kThreads;
    // As many threads as registers allow, whatever their number in a block.
    static constexpr int kBlocksTogether = kOwnThreads == 0 ? HYENA_BLOCKS_TOGETHER
                                           : kOwnThreads <= kManyThreads
                                               ? HYENA_BLOCKS_TOGETHER * kManyThreads / kOwnThreads
                                               : 1;
    typename Kind::OwnTransform transform;

    int64_t channel_blocks() const { return (channels + transform.sets - 1) / transform.sets; }
    int64_t blocks() const { return channel_blocks() * blocks_each(); }

    // Neighbouring blocks have the same channels and the next rows, so that the spectra stay in the second cache level.
    HYENA_DEVICE void operator()(const Block& any_block, char* shared, int64_t index) const {
        const Block block = block_of<Kind>(any_block);
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
        const auto& t = transform;
        // Each thread's own chunks: sets beyond the last channel repeat it, and are not written.
        block.each([&](int thread) {
            chunks.each(thread, [&](int set) {
                const uint32_t channel = own(first, set);
                return [&, set, a = Line(Kind::of(value), Kind::of(sequences), row, channel),
                        b = Line(Kind::of(gates[0]), Kind::of(sequences), row, channel)](int at) {
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
                    return
                        [&, set, last, counts, line = Line(Kind::of(gates[f + 1]), Kind::of(sequences), row, channel),
                         to = Sink(Kind::of(y), row, channel)](int at) {
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

}  // namespace hyena::cuda
