// Tensors as the kernels see them: arrays, operands, sequences, spectra.
//
// Arrays are (B, C, L) in memory here, the natural order of a GPU: what comes otherwise is copied, and goes back as it
// came.
//
// The nouns of this room:
// - Input: the sequences of a call, from z, mask and offsets; holds the tensors that they point into.
// - Projections: z with the parameters of its short convolution, of which Operands are cut.
// - Prepared: a Plan with its tables in device memory, kept for the process (prepared.h).
// - Call: device, stream and rows of an op; Step: one gated convolution of it; StepGradients: where its gradients go;
// Rounds: long rows a few at a time (steps.h).
// - fallback: hands the call to hyena::<op>_fallback, where kernels do not take it (fallback.h).
//
// E.g. hyena::recurrence of z (64, 300, 2304) in bfloat16 that lies as (B, C, L): nothing is copied, the Plan of 320
// points is found or made, and one launch of Convolve has the gates x1 (channels 768 on) and x0 and the value v
// (channels 1536 on).
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "steps.h"

namespace hyena::cuda {

constexpr ScalarType kCompute = ScalarType::Float;

// Makes a tensor's device the current one for as long as it lives.
#if defined(HYENA_EMULATE_CUDA)
struct Guard {
    explicit Guard(const Tensor&) {}
    ~Guard() {}
};
#else
struct Guard {
    torch::stable::accelerator::DeviceGuard guard;
    explicit Guard(const Tensor& t) : guard(t.get_device_index()) {}
};
#endif

// (B, L, C) with contiguous positions.
Tensor positions_last(const Tensor& t);
Optional positions_last(const Optional& t);

Array array(const Tensor& t);
Operand operand(const Tensor& t);
Operand operand(const Optional& t);

// Uninitialised (B, L, channels), positions contiguous.
Tensor empty(const Tensor& like, int64_t channels, std::optional<ScalarType> type = std::nullopt);

// `y`, positions contiguous, in the memory order of `z`.
Tensor in_order_of(const Tensor& y, const Tensor& z);
Tensor in_order_of(const Tensor& y, const Optional& z);

// A spectrum, contiguous, where complex numbers can be read.
Tensor spectrum_memory(const Tensor& t);
// (…, G, room, 2) whose G filters serve `channels` channels.
Spectra spectra_of(const Tensor& t, int64_t channels);
// Points of the transform that a spectrum is of.
int64_t size_of(const Tensor& spectrum);

// Channels first … of an array.
Array part(Array a, int64_t first);

// The parameters of a short convolution and z, whose parts they make operands of.
struct Projections {
    Tensor weight;
    Optional bias, z_bias;
    Array z;

    Projections(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in,
                const Optional& z_bias_in = std::nullopt);
    int64_t taps() const { return weight.size(1); }
    // From channel `first` on.
    Operand from(int64_t first) const {
        return {part(z, first), floats(weight) + first * taps(), bias ? floats(*bias) + first : nullptr,
                int32_t(taps()), z_bias ? floats(*z_bias) + first : nullptr};
    }
};

// Rows of any length: no spectrum bounds them.
constexpr int64_t kAnyLength = int64_t(1) << 62;

// A call's sequences; holds the tensors that they point into.
struct Input {
    Tensor mask, offsets;
    Call call;

    Input(const Tensor& z, const Optional& given, const Optional& cu_seqlens, int64_t longest, int64_t channels);
};

}  // namespace hyena::cuda
