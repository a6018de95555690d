// Linear layers: hyena::project and its gradient.
#include <torch/csrc/stable/library.h>

#include <array>

#include "ops.h"

namespace hyena {
namespace {

// Fewer rows are not worth putting the weight in order.
constexpr int64_t kLeastRows = 256;

bool is_row_major(const Tensor& flat) { return flat.size(1) == 1 || flat.stride(1) == 1; }

// Whether the kernel is for these: `u` and the result or its gradient as (rows, channels).
bool takes_linear(const Tensor& u, const Tensor& other) {
    const ScalarType type = u.scalar_type();
    return has_fast_linear() && (type == ScalarType::Float || type == ScalarType::Double) &&
           other.scalar_type() == type && u.size(0) >= kLeastRows;
}

LinearArgs linear_args(const Tensor& u, const Tensor& y) {
    LinearArgs args{};
    args.rows = u.size(0);
    args.inputs = u.size(1);
    args.outputs = y.size(1);
    args.is_double = u.scalar_type() == ScalarType::Double;
    args.u = {u.data_ptr(), 0, u.stride(0)};
    args.y = {y.data_ptr(), 0, y.stride(0)};
    args.pool = pool();
    return args;
}

Tensor as_rows(const Tensor& t) {
    Tensor flat = torch::stable::reshape(t, {t.size(0) * t.size(1), t.size(2)});
    return is_row_major(flat) ? flat : dense(flat);
}

}  // namespace

// F.linear, its result in huge pages.
Tensor project(const Tensor& u_in, const Tensor& weight, const Optional& bias_in) {
    check_project(u_in, weight, bias_in);
    const Tensor u = as_rows(u_in);
    Tensor z = result(u, {u_in.size(0), u_in.size(1), weight.size(0)});
    Tensor flat = torch::stable::view(z, {u.size(0), weight.size(0)});
    if (takes_linear(u, weight)) {
        Optional bias;
        if (bias_in) bias = dense(*bias_in);
        LinearArgs args = linear_args(u, flat);
        args.weight = weight.data_ptr();
        args.weight_output_stride = weight.stride(0);
        args.weight_input_stride = weight.stride(1);
        args.bias = bias ? bias->data_ptr() : nullptr;
        kernels().linear(args);
        return z;
    }
    std::array<StableIValue, 4> stack{torch::stable::detail::from(u), torch::stable::detail::from(weight),
                                      torch::stable::detail::from(bias_in), torch::stable::detail::from(flat)};
    call_op("aten::linear", "out", stack.data());
    torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference that the call returned
    return z;
}

// Gradients of weight and bias. Always by the kernel: who calls it asks hyena_fast_linear first.
std::tuple<Tensor, Tensor> project_backward(const Tensor& dy_in, const Tensor& u_in) {
    check_project_backward(dy_in, u_in);
    const ScalarType type = compute_type(u_in);
    const Tensor dy = as_rows(parameter(dy_in, type)), u = as_rows(parameter(u_in, type));
    Tensor dweight = result(u, {dy.size(1), u.size(1)});
    Tensor dbias = allocate(u, {dy.size(1)});
    LinearArgs args = linear_args(u, dy);
    args.dweight = dweight.data_ptr();
    args.dbias = dbias.data_ptr();
    kernels().linear_backward(args);
    return {back(dweight, u_in), back(dbias, u_in)};
}

}  // namespace hyena

// Whether hyena::project and hyena::project_backward have a kernel that is faster than torch's.
extern "C" __attribute__((visibility("default"))) int hyena_fast_linear() { return hyena::has_fast_linear(); }
