// The kernels' interface: plain structs of arguments, and a table of functions for each instruction set.
//
// Dimensions: R rows (sequences), L positions, C channels, N order, F long filters, G filter channels, K taps of the
// short convolution, P transform length. Channels of an (R, L, C) array are contiguous, all of them or 16 at a time.
//
// The nouns of this room, outermost first:
// - Kernels: a function for each op, for one instruction set; ...Args: what it is called with.
// - Sequence: the Rows of a call, their mask, storage and Pool of threads; Array: where (R, L, C) numbers are.
// - Spectra: of F filters, in blocks of W channels; SpectrumOf: what one Group of channels sees of them (spectra.h).
// - Group: up to W neighbouring channels; Channels: one Group of an Array in one Row; Keep: its mask (sequences.h).
// - Convolved: Channels behind the short convolution (short_conv.h); ShortParts: gates and value (short_parts.h).
// - DirectTaps: a filter that is applied tap by tap (direct_taps.h).
// - Team: threads that share a task; share, share_rows, share_blocks hand out tasks (work.h, sharing.h).
// - Products: what happens between transforms, times the filter and its gradient (products.h).
// - section: P positions of a longer row; Tail: what one adds to the next (sections.h, recurrence_sections.h).
// - RecurrenceGradient: which of three ways takes a recurrence's gradient (recurrence_gradient.h).
//
// E.g. a recurrence of order 2 over B = 2 rows of L = 300 positions, C = 20 channels, P = 320, with AVX2 (W = 8): three
// groups (8, 8, 4 lanes) for each row are six tasks. A task reads x1 * v of its group position by position, transforms
// in a buffer of 320 points (20 KiB), multiplies by the spectrum of its block, which begins 2 * 320 * 8 numbers
// behind the block before it, transforms back, and writes x0 times the real part. The backward pass has three tasks, a
// block of filters each with both rows, so that every sum over rows has one writer.
#pragma once

#include <cstdint>

#include "../simd/lane_block.h"

namespace hyena {

enum class Storage { kFloat, kDouble, kBFloat16, kFloat16 };

// A sequence in the arrays: index of its first position in mask and positions, and its length.
struct Row {
    int64_t batch, start, length;
};

// An (R, L, C) array: element (batch, t, c) is at data[batch * batch_stride + t * stride + place(c)].
struct Array {
    void* data = nullptr;
    int64_t batch_stride = 0, stride = 0;
    int64_t block_stride = kLaneBlock;  // another number if it is in channel blocks

    int64_t place(int64_t c) const { return c / kLaneBlock * block_stride + c % kLaneBlock; }
};

// Runs body(context, i) for i in [0, count), possibly at the same time; `threads` is how many may run at once.
struct Pool {
    int threads;
    void (*run)(int64_t count, void (*body)(void* context, int64_t i), void* context);
};

struct Sequence {
    const Row* rows;
    int64_t num_rows;
    const uint8_t* mask;  // (B, L), or null: 1 = keep
    int64_t mask_stride;
    Storage storage;
    Pool pool;
};

// The short convolution's parameters, in arithmetic precision: weight (channels, taps), bias (channels) or null.
struct ShortFilter {
    const void* weight;
    const void* bias;
    int64_t taps;
};

// Spectra of F filters: filter f, block b of W filter channels, at data + f * filter_stride + b * 2 * P * W.
struct Spectra {
    void* data;
    int64_t filter_stride, filters, channels;
    int64_t points;  // P
};

struct ShortConvArgs {
    Sequence seq;
    int64_t channels;
    Array z, y;
    ShortFilter filter;
    // backward: z, dy -> dz, dweight, dbias
    Array dy, dz;
    void *dweight, *dbias;
};

struct SpectrumArgs {
    Spectra spectra;
    void* taps;    // (F, K, G) or (F, 2K-1, G); written by the backward
    int64_t lags;  // K
    bool causal, is_double;
    Pool pool;
};

struct GatedConvArgs {
    Sequence seq;
    int64_t channels;
    Array v, pre, post, y;  // pre and post may be null
    Spectra spectra;          // rows of more positions than its points are convolved in sections
    const void* d;            // (C) or null
    int64_t positions_added;  // 0; or: so many first positions of the result are added to y, without post
    // backward
    Array dy, dv, dpre, dpost;
    Spectra dspectra;
    void* dd;
};

// A convolution of few taps: lags 0 … taps - 1, or two-sided -(taps - 1) / 2 … (taps - 1) / 2.
struct DirectConvArgs {
    Sequence seq;
    int64_t channels, filters, taps;
    bool causal;
    Array v, pre, post, y;  // pre and post may be null
    const void *h, *d;      // (taps, filters), (C) or null
    // backward
    Array dy, dv, dpre, dpost;
    void *dh, *dd;
};

// The mixing step with one filter of few taps: order 2, or order 1 with a value filter.
struct DirectRecurrenceArgs {
    Sequence seq;
    int64_t channels, order, filters, taps;
    bool causal;
    Array z, y;
    ShortFilter short_filter;
    const void *h, *d;  // (taps, filters), (C)
    // backward
    Array dy, dz;
    void *dweight, *dbias, *dh, *dd;
};

struct RecurrenceArgs {
    Sequence seq;
    int64_t channels, order;
    Array z, y;
    ShortFilter short_filter;
    Spectra spectra;  // rows of more positions than its points are convolved in sections
    const void* d;    // (F, C)
    // backward
    Array dy, dz;
    void *dweight, *dbias, *dd;
    Spectra dspectra;
};

// h = (output layer of sin(freq (layer of … sin(freq (first layer of input))))) (exp(-time |deltas|) + shift).
//
// K taps, E features, H width of the hidden layers. Weights are (outputs, inputs) as in torch, everything contiguous.
struct ImplicitFilterArgs {
    int64_t taps, features, width, inner_layers, filters, channels;
    bool is_double;
    double shift;
    const void *input, *time;                   // (K, E), (K)
    const void *first, *inner, *biases, *freq;  // (H, E), (inner, H, H), (1 + inner, H), (H)
    const void *out, *deltas;                   // (F C, H), (F C)
    void* h;                                    // (F, K, C)
    const void* dh;                             // backward
    void *dinput, *dtime, *ddeltas;             // all or none null
    void *dfirst, *dinner, *dbiases, *dfreq, *dout;
    Pool pool;
};

// y = u weight^T + bias of B L positions, K inputs, N outputs; and the gradients of weight and bias from that of y.
struct LinearArgs {
    int64_t batch, length, inputs, outputs;
    bool is_double;
    Array u, y;
    const void *weight, *bias;  // bias (N) or null
    int64_t weight_output_stride, weight_input_stride;
    void *dweight, *dbias;  // (N, K), (N); y holds its gradient then
    Pool pool;
};

// y = x + bias for every position of x, in arithmetic precision; dbias is the sum of x, which holds a gradient then.
struct ChannelBiasArgs {
    Array x, y;
    int64_t batch, length, channels;
    Storage storage;  // of x
    const void* bias;
    void* dbias;
    Pool pool;
};

// One position of a convolution that remembers: x (B, 1, C) -> y, its memory (B, …, C) or (B, C, …) moved on.
struct StepArgs {
    int64_t batch, channels;
    bool is_double;
    Array x, pre, post, y;  // pre and post may be null
    Array memory;           // contiguous but for the batch
    Pool pool;
    // Where x is null: the gate behind, the gate before and x are the parts of z (B, 1, 3 C) behind a short convolution
    // with a memory of its own.
    Array z, last;
    ShortFilter short_filter;
};

// Memory (B, K - 1, C): the last inputs. No gates.
struct ShortStepArgs : StepArgs {
    ShortFilter filter;
};

// Memory (B, C, m): y = Re(residue · states) + first x; states <- pole states + x.
struct ModalStepArgs : StepArgs {
    int64_t modes;
    bool is_complex;
    const void *pole, *residue, *first;  // (C, m), (C, m), (C)
};

// Memory (B, K - 1, C): the last inputs, the oldest first.
struct WindowStepArgs : StepArgs {
    int64_t taps;
    const void* h;  // (K, C)
};

struct Kernels {
    const char* name;  // the instruction set
    void (*short_conv)(const ShortConvArgs&);
    void (*short_conv_backward)(const ShortConvArgs&);
    void (*spectrum)(const SpectrumArgs&);
    void (*spectrum_backward)(const SpectrumArgs&);
    void (*gated_conv)(const GatedConvArgs&);
    void (*gated_conv_backward)(const GatedConvArgs&);
    void (*recurrence)(const RecurrenceArgs&);
    void (*recurrence_backward)(const RecurrenceArgs&);
    void (*direct_recurrence)(const DirectRecurrenceArgs&);
    void (*direct_recurrence_backward)(const DirectRecurrenceArgs&);
    void (*direct_conv)(const DirectConvArgs&);
    void (*direct_conv_backward)(const DirectConvArgs&);
    void (*implicit_filter)(const ImplicitFilterArgs&);
    void (*implicit_filter_backward)(const ImplicitFilterArgs&);
    void (*linear)(const LinearArgs&);
    void (*linear_backward)(const LinearArgs&);
    void (*channel_bias)(const ChannelBiasArgs&);
    void (*channel_bias_backward)(const ChannelBiasArgs&);
    void (*short_step)(const ShortStepArgs&);
    void (*modal_step)(const ModalStepArgs&);
    void (*window_step)(const WindowStepArgs&);
};

// The table for the best instruction set of this machine; HYENA_CPU=avx512|avx2|baseline asks for a lesser one.
const Kernels& kernels();

// Rows from which on kernels().linear is faster than what torch has on this machine; 0 if never.
int64_t fast_linear_rows();

// One table for each instruction set that was compiled.
const Kernels& kernels_baseline();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

}  // namespace hyena
