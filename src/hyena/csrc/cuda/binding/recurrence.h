// The mixing step on a GPU: y from z (B, L, (order + 1) D), and its gradients. docs/maths.md defines it.
#pragma once

#include <tuple>

#include "../../tensors.h"

namespace hyena::cuda {

Tensor recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& spectrum, const Tensor& d,
                  const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias, bool sectioned);

// dz, dweight, dbias, dspectrum, dd, dz_bias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrence_backward(
    const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& spectrum,
    const Tensor& d, const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias, bool sectioned);

}  // namespace hyena::cuda
