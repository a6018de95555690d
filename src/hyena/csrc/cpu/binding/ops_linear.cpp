// Linear layers: hyena::project, to and from channel blocks, and their gradients.
#include <torch/csrc/stable/library.h>

#include <array>

#include "ops.h"

namespace hyena {
namespace {

// Whether the kernel is for these: an input, and the result or its gradient.
bool takes_linear(const Tensor& u, const Tensor& other) {
    const ScalarType type = u.scalar_type();
    const int64_t least = fast_linear_rows();
    return least > 0 && (type == ScalarType::Float || type == ScalarType::Double) && other.scalar_type() == type &&
           u.size(0) * length_of(u) >= least;
}

LinearArgs linear_args(const Tensor& u, const Tensor& y) {
    LinearArgs args{};
    args.batch = u.size(0);
    args.length = length_of(u);
    args.inputs = channels_of(u);
    args.outputs = channels_of(y);
    args.is_double = u.scalar_type() == ScalarType::Double;
    args.u = array(u);
    args.y = array(y);
    args.pool = pool();
    return args;
}

// (B, L, C) as one row (1, B L, C).
Tensor as_rows(const Tensor& t) {
    return channels_last(torch::stable::reshape(t, {1, t.size(0) * t.size(1), t.size(2)}));
}

void multiply(const Tensor& u, const Tensor& weight, const Optional& bias_in, const Tensor& y) {
    Optional bias;
    if (bias_in) bias = dense(*bias_in);
    LinearArgs args = linear_args(u, y);
    args.weight = weight.data_ptr();
    args.weight_output_stride = weight.stride(0);
    args.weight_input_stride = weight.stride(1);
    args.bias = bias ? bias->data_ptr() : nullptr;
    kernels().linear(args);
}

// F.linear of (1, rows, inputs) into y (1, rows, outputs).
void linear(const Tensor& u_in, const Tensor& weight, const Optional& bias, const Tensor& y) {
    using torch::stable::detail::from;
    // What torch would read past the ends of bfloat16 rows: dense_rows in ops/_layout.py.
    const Tensor u = u_in.scalar_type() == ScalarType::BFloat16 ? dense(u_in) : u_in;
    // As matrices: with three dimensions torch rounds float16 once more before it adds the bias.
    const auto matrix = [](const Tensor& t) { return torch::stable::view(t, {t.size(1), t.size(2)}); };
    std::array<StableIValue, 4> stack{from(matrix(u)), from(weight), from(bias), from(matrix(y))};
    call_op("aten::linear", "out", stack.data());
    torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference that the call returned
}

}  // namespace

// F.linear, its result in huge pages.
Tensor project(const Tensor& u_in, const Tensor& weight, const Optional& bias) {
    check_project(u_in, weight, bias);
    const Tensor u = as_rows(u_in);
    Tensor z = result(u, {u_in.size(0), u_in.size(1), weight.size(0)});
    const Tensor flat = torch::stable::view(z, {1, u.size(1), weight.size(0)});
    if (takes_linear(u, weight))
        multiply(u, weight, bias, flat);
    else
        linear(u, weight, bias, flat);
    return z;
}

// The rest are always by the kernel: who calls them asks hyena_fast_linear_rows first.

Tensor project_channel_blocked(const Tensor& u_in, const Tensor& weight_in, const Optional& bias) {
    check_project_channel_blocked(u_in, weight_in, bias);
    const ScalarType type = compute_type(u_in);
    const Tensor u = channels_last(parameter(u_in, type)), weight = parameter(weight_in, type);
    const Tensor z = result(u, {u.size(0), weight.size(0) / kChannelBlock, u.size(1), kChannelBlock});
    multiply(u, weight, parameter(bias, type), z);
    return back(z, u_in);
}

Tensor project_from_channel_blocked(const Tensor& u_in, const Tensor& weight_in, const Optional& bias) {
    check_project_from_channel_blocked(u_in, weight_in, bias);
    const ScalarType type = compute_type(u_in);
    const Tensor u = channels_last(parameter(u_in, type)), weight = parameter(weight_in, type);
    const Tensor z = result(u, {u.size(0), u.size(2), weight.size(0)});
    multiply(u, weight, parameter(bias, type), z);
    return back(z, u_in);
}

std::tuple<Tensor, Tensor> project_backward(const Tensor& dy_in, const Tensor& u_in) {
    check_project_backward(dy_in, u_in);
    const ScalarType type = compute_type(u_in);
    Tensor dy = channels_last(parameter(dy_in, type)), u = channels_last(parameter(u_in, type));
    if (!is_blocked(dy) && !is_blocked(u)) dy = as_rows(dy), u = as_rows(u);
    Tensor dweight = result(u, {channels_of(dy), channels_of(u)});
    Tensor dbias = allocate(u, {channels_of(dy)});
    LinearArgs args = linear_args(u, dy);
    args.dweight = dweight.data_ptr();
    args.dbias = dbias.data_ptr();
    kernels().linear_backward(args);
    return {back(dweight, u_in), back(dbias, u_in)};
}

}  // namespace hyena

// Rows from which on hyena::project and hyena::project_backward have a kernel that is faster than torch's; 0 if never.
extern "C" __attribute__((visibility("default"))) int hyena_fast_linear_rows() {
    return int(hyena::fast_linear_rows());
}
