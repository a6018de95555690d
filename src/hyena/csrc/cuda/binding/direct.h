// The ops hyena::direct_conv and its gradient, on tensor cores.
#pragma once

#include <tuple>

#include "arrays.h"

namespace hyena::cuda {

Tensor direct_conv(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                   const Optional& cu_seqlens, bool causal);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> direct_conv_backward(const Tensor& dy, const Tensor& v,
                                                                        const Tensor& h, const Optional& d,
                                                                        const Optional& pre, const Optional& post,
                                                                        const Optional& cu_seqlens, bool causal);

}  // namespace hyena::cuda
