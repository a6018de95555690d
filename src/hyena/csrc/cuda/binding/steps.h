// One gated long convolution, or its gradient, as launches: one kernel where a row fits a block, rounds of three where
// it does not.
#pragma once

#include <algorithm>

#include "../device/tuning.h"
#include "prepared.h"

namespace hyena::cuda {

// What every step of a call shares.
struct Call {
    Device device;
    Tensor like;  // float32 scratch is made on its device
    Sequences sequences;
    int64_t channels;

    Tensor scratch(int64_t floats) const { return allocate(like, {floats}, ScalarType::Float); }
    template <class Program>
    void run(const char* name, const Program& program, int threads = 128, int64_t shared = 0) const {
        launch(name, program, threads, shared, device);
    }
};

template <class Program>
void run_columns(const Call& call, const char* name, const Program& program, const Plan& plan) {
    call.run(name, program, threads_for(plan.columns.size()), shared_bytes(plan.columns.size()));
}
template <class Program>
void run_rows(const Call& call, const char* name, const Program& program, const Plan& plan) {
    call.run(name, program, threads_for(plan.rows.size()), shared_bytes(plan.rows.size()));
}

// Scratch memory of a round over long rows: near the second cache level of a data-centre GPU. On an H200 half of it
// costs a sixth of the gradient's time, because few blocks run at once.
constexpr int64_t kRoundBytes = int64_t(64) << 20;

// The (channel, row) pairs of a call in rounds that need at most kRoundBytes, at `bytes_each` for a pair; or one pair
// at a time. Rows come first, whose filter is then read once; where a block takes all rows of a channel one after the
// other, channels must, or few blocks run at once.
class Rounds {
  public:
    enum class First { kRows, kChannels };

    Rounds(const Call& call, int64_t rows, int64_t bytes_each, First first = First::kRows)
        : channels_(call.channels), rows_(rows) {
        const int64_t fitting = std::max<int64_t>(tuned(Choice::kRoundBytes, kRoundBytes) / bytes_each, 1);
        const auto at_once = [&](int64_t there, int64_t taken) {
            return std::clamp<int64_t>(fitting / taken, 1, std::max<int64_t>(there, 1));
        };
        if (first == First::kRows) rows_at_once_ = at_once(rows_, 1);
        channels_at_once_ = at_once(channels_, rows_at_once_);
        rows_at_once_ = at_once(rows_, channels_at_once_);
    }

    int64_t pairs() const { return rows_at_once_ * channels_at_once_; }

    template <class Fn>
    void each(Fn&& fn) const {
        for (int64_t c = 0; c < channels_; c += channels_at_once_)
            for (int64_t r = 0; r < rows_; r += rows_at_once_)
                fn(Pairs{c, std::min(channels_at_once_, channels_ - c), r, std::min(rows_at_once_, rows_ - r)});
    }

  private:
    int64_t channels_, rows_, rows_at_once_ = 1, channels_at_once_ = 1;
};

// The two halves of a split plan, over the pairs of a round.
inline Columns columns_of(const Plan& plan, const Pairs& pairs, Cx* scratch) {
    return {plan.columns, plan.between, pairs, plan.points, plan.rows.points, scratch};
}
inline MatrixRows rows_of(const Plan& plan) { return {plan.rows, plan.points, plan.columns.points}; }

// y = post * conv(pre * value); pre and post may be missing.
struct Step {
    Operand value, pre, post;
    Spectra spectra;           // of all filters
    int64_t filter = 0;        // which one
    const float* d = nullptr;  // (C) of this filter, or null
};

void forward(const Call& call, const Prepared& prepared, const Step& step, const Array& y);

// Runs a convolution of rows that fit one block, with as many rows to a block as pays.
void convolve(const Call& call, const char* name, Convolve<AnyKind> program);

struct StepGradients {
    Array dvalue, dpre, dpost;   // the last two only where there are such gates
    float* dspectrum = nullptr;  // (G, room, 2)
    float* dd = nullptr;         // (C), or null
    Tensor sums;                 // with `adjoint`: (C, kSums)
};

// With `adjoint` (one block only), gradients of z through its short convolution, and sums for taps and biases.
void backward(const Call& call, const Prepared& prepared, const Step& step, const Operand& dy, bool adjoint,
              StepGradients& to);

// Sums of floats (outer, groups, width, inner) over outer and width, as (groups, room).
void reduce(const Call& call, const float* in, int64_t outer, int64_t groups, int64_t width, int64_t inner,
            int64_t room, float* out);

// y = a * b; b may be missing.
void multiply(const Call& call, const Operand& a, const Operand& b, const Array& y);

// dz, and gradients of the weight and bias of z's short convolution and, if it is asked for, of z_bias, from that of
// its result. All of z's channels.
void short_conv_gradient(const Call& call, const Operand& z, const Operand& dy, const Array& dz, float* dweight,
                         float* dbias, float* dz_bias = nullptr);

// Sums of a * b * c * e over rows and positions, (C); all but a may be missing.
void dot(const Call& call, const Operand& a, const Operand& b, const Operand& c, const Operand& e, float* out);

}  // namespace hyena::cuda
