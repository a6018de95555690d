// Checks of decoding steps' arguments.
#include "checks.h"
#include "expect.h"

namespace hyena {
namespace {

// One position of rows, in the precision of the arithmetic.
void expect_position(const char* name, const Tensor& x) { expect(name, x, {kAny, 1, kAny}, kWide, x); }
void expect_gates_and_value(const Tensor& z) {
    expect_position("z", z);
    if (z.size(2) % 3 != 0) require(false, "z of ", z.size(2), " channels is not two gates and a value: not 3 C");
}

// The short convolution of x and its last inputs.
void expect_short_memory(const Tensor& x, const Tensor& weight, const Optional& bias, const char* name,
                         const Tensor& memory) {
    const Types type = only(x.scalar_type());
    expect("weight", weight, {x.size(2), kAny}, type, x);
    if (weight.size(1) < 1) require(false, "weight must have at least one tap, got shape ", shape_of(weight.sizes()));
    expect("bias", bias, {x.size(2)}, type, x);
    expect(name, memory, {x.size(0), weight.size(1) - 1, x.size(2)}, type, x);
    expect_one_place(name, memory);
}

// A recurrence of modes, real or complex ones.
void expect_states(const Tensor& x, int64_t channels, const Tensor& pole, const Tensor& residue, const Tensor& first,
                   const Tensor& memory) {
    expect("first", first, {channels}, only(x.scalar_type()), x);
    const bool is_double = x.scalar_type() == ScalarType::Double;
    const ScalarType real = x.scalar_type(), complex = is_double ? ScalarType::ComplexDouble : ScalarType::ComplexFloat;
    if (!pole.defined() || pole.scalar_type() != complex)
        expect("pole", pole, {channels, kAny}, {name_of(real) + " or " + name_of(complex), {real, real, real, real}},
               x);
    expect("pole", pole, {channels, kAny}, only(pole.scalar_type()), x);
    expect("residue", residue, {channels, pole.size(1)}, only(pole.scalar_type()), x);
    expect("memory", memory, {x.size(0), channels, pole.size(1)}, only(pole.scalar_type()), x);
    expect_one_place("memory", memory);
}

void expect_window(const Tensor& x, int64_t channels, const Tensor& h, const Tensor& memory) {
    expect("h", h, {kAny, channels}, only(x.scalar_type()), x);
    if (h.size(0) < 1) require(false, "h must be (K, C) with at least one tap, got shape ", shape_of(h.sizes()));
    expect("memory", memory, {x.size(0), h.size(0) - 1, channels}, only(x.scalar_type()), x);
    expect_one_place("memory", memory);
}

}  // namespace

void check_short_step(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& memory) {
    expect_position("x", x);
    expect_short_memory(x, weight, bias, "memory", memory);
}

void check_modal_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& pole,
                      const Tensor& residue, const Tensor& first, const Tensor& memory) {
    expect_position("x", x);
    expect_like("pre", pre, x);
    expect_like("post", post, x);
    expect_states(x, x.size(2), pole, residue, first, memory);
}

void check_window_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& h,
                       const Tensor& memory) {
    expect_position("x", x);
    expect_like("pre", pre, x);
    expect_like("post", post, x);
    expect_window(x, x.size(2), h, memory);
}

void check_gated_modal_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                            const Tensor& pole, const Tensor& residue, const Tensor& first, const Tensor& memory) {
    expect_gates_and_value(z);
    expect_short_memory(z, weight, bias, "last", last);
    expect_states(z, z.size(2) / 3, pole, residue, first, memory);
}

void check_gated_window_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                             const Tensor& h, const Tensor& memory) {
    expect_gates_and_value(z);
    expect_short_memory(z, weight, bias, "last", last);
    expect_window(z, z.size(2) / 3, h, memory);
}

}  // namespace hyena
