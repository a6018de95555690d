// Decoding steps: one position of convolutions that remember, alone or from projections to mixed values.
#include "ops.h"

namespace hyena {
namespace {

bool is_complex(const Tensor& t) {
    return t.scalar_type() == ScalarType::ComplexFloat || t.scalar_type() == ScalarType::ComplexDouble;
}

// A memory as the kernels change it: itself, or a copy that goes back at the end.
class Changed {
  public:
    explicit Changed(const Tensor& t) : original_(t), dense_(is_dense(t) ? t : dense(t)) {}
    // Complex numbers count as two.
    Array array() const { return {dense_.data_ptr(), dense_.stride(0) * (is_complex(dense_) ? 2 : 1), 0}; }
    void finish() {
        if (dense_.data_ptr() != original_.data_ptr()) torch::stable::copy_(original_, dense_);
    }

  private:
    static bool is_dense(const Tensor& t) {
        return (t.size(2) == 1 || t.stride(2) == 1) && (t.size(1) == 1 || t.stride(1) == t.size(2));
    }
    Tensor original_;
    const Tensor dense_;
};

// The arguments of a step of so many channels; x, gates and y are still to be set.
template <class Args>
Args step_args(const Tensor& x, int64_t channels, const Changed& memory) {
    Args args{};
    args.batch = x.size(0);
    args.channels = channels;
    args.is_double = x.scalar_type() == ScalarType::Double;
    args.memory = memory.array();
    args.pool = pool();
    return args;
}

// A short convolution, and the tensors that its arguments point into.
struct Short {
    const Tensor weight;
    const Optional bias;
    Changed memory;
    Tensor y;

    Short(const Tensor& x_in, const Tensor& weight_in, const Optional& bias_in, const Tensor& memory_in)
        : weight(dense(weight_in)),
          bias(parameter(bias_in, weight_in.scalar_type())),
          memory(memory_in),
          y(allocate(x_in, {x_in.size(0), 1, x_in.size(2)})) {
        const Tensor x = channels_last(x_in);
        ShortStepArgs args = step_args<ShortStepArgs>(x, x.size(2), memory);
        args.x = array(x);
        args.y = array(y);
        args.filter = {weight.data_ptr(), bias ? bias->data_ptr() : nullptr, weight.size(1)};
        kernels().short_step(args);
        memory.finish();
    }
};

// x between its gates, from tensors of their own or from z (B, 1, 3 C) = gate behind, gate before, value.
struct GatedValue {
    Array x, pre, post;
    int64_t channels;

    GatedValue(const Tensor& x, const Optional& pre, const Optional& post)
        : x(array(x)), pre(array(pre)), post(array(post)), channels(x.size(2)) {}
    explicit GatedValue(const Tensor& z) : channels(z.size(2) / 3) {
        const int64_t bytes = channels * (z.scalar_type() == ScalarType::Double ? 8 : 4);
        post = array(z);
        pre = {static_cast<char*>(post.data) + bytes, post.batch_stride, post.stride};
        x = {static_cast<char*>(pre.data) + bytes, post.batch_stride, post.stride};
    }
};

// Runs a long convolution's step; `set` adds what only that kind has.
template <class Args, class Set>
Tensor long_step(const Tensor& like, const GatedValue& in, const Tensor& memory_in, void (*kernel)(const Args&),
                 Set&& set) {
    Changed memory(memory_in);
    const Tensor y = allocate(like, {like.size(0), 1, in.channels});
    Args args = step_args<Args>(like, in.channels, memory);
    args.x = in.x;
    args.pre = in.pre;
    args.post = in.post;
    args.y = array(y);
    set(args);
    kernel(args);
    memory.finish();
    return y;
}

Tensor modal(const Tensor& like, const GatedValue& in, const Tensor& pole_in, const Tensor& residue_in,
             const Tensor& first_in, const Tensor& memory) {
    const Tensor pole = dense(pole_in), residue = dense(residue_in), first = dense(first_in);
    return long_step<ModalStepArgs>(like, in, memory, kernels().modal_step, [&](ModalStepArgs& args) {
        args.modes = pole.size(1);
        args.is_complex = is_complex(pole);
        args.pole = pole.data_ptr();
        args.residue = residue.data_ptr();
        args.first = first.data_ptr();
    });
}

Tensor window(const Tensor& like, const GatedValue& in, const Tensor& h_in, const Tensor& memory) {
    const Tensor h = dense(h_in);
    return long_step<WindowStepArgs>(like, in, memory, kernels().window_step, [&](WindowStepArgs& args) {
        args.taps = h.size(0);
        args.h = h.data_ptr();
    });
}

}  // namespace

Tensor short_step(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& memory) {
    check_short_step(x, weight, bias, memory);
    return Short(x, weight, bias, memory).y;
}

Tensor modal_step(const Tensor& x_in, const Optional& pre_in, const Optional& post_in, const Tensor& pole,
                  const Tensor& residue, const Tensor& first, const Tensor& memory) {
    check_modal_step(x_in, pre_in, post_in, pole, residue, first, memory);
    const Tensor x = channels_last(x_in);
    const Optional pre = channels_last(pre_in), post = channels_last(post_in);
    return modal(x, GatedValue(x, pre, post), pole, residue, first, memory);
}

Tensor window_step(const Tensor& x_in, const Optional& pre_in, const Optional& post_in, const Tensor& h,
                   const Tensor& memory) {
    check_window_step(x_in, pre_in, post_in, h, memory);
    const Tensor x = channels_last(x_in);
    const Optional pre = channels_last(pre_in), post = channels_last(post_in);
    return window(x, GatedValue(x, pre, post), h, memory);
}

Tensor gated_modal_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                        const Tensor& pole, const Tensor& residue, const Tensor& first, const Tensor& memory) {
    check_gated_modal_step(z, weight, bias, last, pole, residue, first, memory);
    const Short convolved(z, weight, bias, last);
    return modal(convolved.y, GatedValue(convolved.y), pole, residue, first, memory);
}

Tensor gated_window_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                         const Tensor& h, const Tensor& memory) {
    check_gated_window_step(z, weight, bias, last, h, memory);
    const Short convolved(z, weight, bias, last);
    return window(convolved.y, GatedValue(convolved.y), h, memory);
}

}  // namespace hyena
