// Tensors as the kernels see them: arrays, sequences, spectra, short filters.
//
// Channels are contiguous for the kernels; what comes otherwise is copied, and goes back in the order in which it came.
//
// The nouns of this room:
// - SequenceRows: the sequences of a call, from z, mask and offsets; holds what its pointers point into.
// - array, spectra, short_filter: tensors as the kernels' structs.
// - parameter: a weight in arithmetic precision, contiguous; back: a gradient in its weight's dtype (tensors.h).
// - check_...: what an op asks of its arguments (checks.h), in the first line of every op.
//
// E.g. hyena::recurrence of z (2, 300, 60) in bfloat16 that lies as (B, C, L): channels_last copies it, the short
// filter and d become float32, y is new memory of (2, 300, 20), and in_order_of copies it into memory that lies as z
// does.
#pragma once

#include <vector>

#include "../../tensors.h"
#include "../kernels/kernels.h"

namespace hyena {

// torch's threads.
Pool pool();

Tensor channels_last(const Tensor& t);
Optional channels_last(const Optional& t);

Array array(const Tensor& t);
Array array(const Optional& t);

// Uninitialised memory for a result. Long ones have what earlier calls' results had: new pages are zeroed by the system
// as they are first written. Their storage cannot be made longer in place (`resize_`).
Tensor result(const Tensor& like, Sizes sizes, std::optional<ScalarType> type = std::nullopt);

// Uninitialised (B, L, channels), in channel blocks if `like` is.
Tensor empty(const Tensor& like, int64_t channels, std::optional<ScalarType> type = std::nullopt);

// `y`, made contiguous by a kernel, in the order of `z`.
Tensor in_order_of(const Tensor& y, const Tensor& z);
Tensor in_order_of(const Tensor& y, const Optional& z);

// Rows of any length: no spectrum bounds them.
constexpr int64_t kAnyLength = int64_t(1) << 62;

// Everything about the sequences of a call; holds the tensors that its pointers point into.
struct SequenceRows {
    std::vector<Row> rows;
    Tensor mask;
    Sequence sequence;

    SequenceRows(const Tensor& z, const Optional& given, const Optional& cu_seqlens, int64_t longest);
};

// Of `filters` filters: (…, G, size + 1, 2).
Spectra spectra(const Tensor& t, int64_t filters);

// New memory for spectra of `size` points; the room beyond those that a transform uses is zero.
Tensor empty_spectrum(const Tensor& like, int64_t filters, int64_t channels, int64_t size);

ShortFilter short_filter(const Tensor& weight, const Tensor& bias);
ChannelBiasArgs channel_bias_args(const Tensor& x);
Tensor bias_or_zeros(const Optional& bias, const Tensor& weight, ScalarType type);

}  // namespace hyena
