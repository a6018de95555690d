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

// Short convolutions and gates around a step: x between its gates from tensors of their own, or from the projections
// z (B, 1, 3 C) behind a short convolution. Holds what the arguments point into.
class Around {
  public:
    Around(const Tensor& x, const Optional& pre, const Optional& post)
        : x_(channels_last(x)), pre_(channels_last(pre)), post_(channels_last(post)), channels_(x.size(2)) {}
    Around(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last)
        : x_(channels_last(z)),
          weight_(dense(weight)),
          bias_(parameter(bias, weight.scalar_type())),
          last_(last),
          channels_(z.size(2) / 3) {}

    // Runs the step of a long convolution; `set` adds what only that kind has.
    template <class Args, class Set>
    Tensor step(const Tensor& memory_in, void (*kernel)(const Args&), Set&& set) {
        Changed memory(memory_in);
        const Tensor y = allocate(x_, {x_.size(0), 1, channels_});
        Args args{};
        args.batch = x_.size(0);
        args.channels = channels_;
        args.is_double = x_.scalar_type() == ScalarType::Double;
        args.memory = memory.array();
        args.y = array(y);
        args.pool = pool();
        if (last_) {
            args.z = array(x_);
            args.last = last_->array();
            args.short_filter = {weight_->data_ptr(), bias_ ? bias_->data_ptr() : nullptr, weight_->size(1)};
        } else {
            args.x = array(x_);
            args.pre = array(pre_);
            args.post = array(post_);
        }
        set(args);
        kernel(args);
        memory.finish();
        if (last_) last_->finish();
        return y;
    }

  private:
    const Tensor x_;
    const Optional pre_, post_, weight_, bias_;
    std::optional<Changed> last_;
    const int64_t channels_;
};

Tensor modal(Around around, const Tensor& pole_in, const Tensor& residue_in, const Tensor& first_in,
             const Tensor& memory) {
    const Tensor pole = dense(pole_in), residue = dense(residue_in), first = dense(first_in);
    return around.step<ModalStepArgs>(memory, kernels().modal_step, [&](ModalStepArgs& args) {
        args.modes = pole.size(1);
        args.is_complex = is_complex(pole);
        args.pole = pole.data_ptr();
        args.residue = residue.data_ptr();
        args.first = first.data_ptr();
    });
}

Tensor window(Around around, const Tensor& h_in, const Tensor& memory) {
    const Tensor h = dense(h_in);
    return around.step<WindowStepArgs>(memory, kernels().window_step, [&](WindowStepArgs& args) {
        args.taps = h.size(0);
        args.h = h.data_ptr();
    });
}

}  // namespace

Tensor short_step(const Tensor& x_in, const Tensor& weight_in, const Optional& bias_in, const Tensor& memory_in) {
    check_short_step(x_in, weight_in, bias_in, memory_in);
    const Tensor x = channels_last(x_in), weight = dense(weight_in);
    const Optional bias = parameter(bias_in, weight.scalar_type());
    Changed memory(memory_in);
    const Tensor y = allocate(x, {x.size(0), 1, x.size(2)});
    ShortStepArgs args{};
    args.batch = x.size(0);
    args.channels = x.size(2);
    args.is_double = x.scalar_type() == ScalarType::Double;
    args.x = array(x);
    args.y = array(y);
    args.memory = memory.array();
    args.pool = pool();
    args.filter = {weight.data_ptr(), bias ? bias->data_ptr() : nullptr, weight.size(1)};
    kernels().short_step(args);
    memory.finish();
    return y;
}

Tensor modal_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& pole, const Tensor& residue,
                  const Tensor& first, const Tensor& memory) {
    check_modal_step(x, pre, post, pole, residue, first, memory);
    return modal({x, pre, post}, pole, residue, first, memory);
}

Tensor window_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& h, const Tensor& memory) {
    check_window_step(x, pre, post, h, memory);
    return window({x, pre, post}, h, memory);
}

Tensor gated_modal_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                        const Tensor& pole, const Tensor& residue, const Tensor& first, const Tensor& memory) {
    check_gated_modal_step(z, weight, bias, last, pole, residue, first, memory);
    return modal({z, weight, bias, last}, pole, residue, first, memory);
}

Tensor gated_window_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                         const Tensor& h, const Tensor& memory) {
    check_gated_window_step(z, weight, bias, last, h, memory);
    return window({z, weight, bias, last}, h, memory);
}

}  // namespace hyena
