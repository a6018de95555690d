// The ops that Python defines, on the CPU; ops.cpp registers them. Shapes and meaning are in hyena/ops.
#pragma once

#include <tuple>

#include "../../checks.h"
#include "arrays.h"

namespace hyena {

using Three = std::tuple<Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// ops_conv.cpp
Tensor short_conv(const Tensor& z, const Tensor& weight, const Optional& bias, const Optional& mask,
                  const Optional& cu_seqlens);
Three short_conv_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& mask,
                          const Optional& cu_seqlens);
Tensor gated_conv(const Tensor& v, const Tensor& spectrum, const Optional& d, const Optional& pre, const Optional& post,
                  const Optional& cu_seqlens, bool sectioned);
Five gated_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& spectrum, const Optional& d,
                         const Optional& pre, const Optional& post, const Optional& cu_seqlens, bool sectioned);
void add_conv(const Tensor& y, const Tensor& v, const Tensor& spectrum);
Tensor direct_conv(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                   const Optional& cu_seqlens, bool causal);
Five direct_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre,
                          const Optional& post, const Optional& cu_seqlens, bool causal);

// ops_recurrence.cpp
Tensor recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& spectrum, const Tensor& d,
                  const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias, bool sectioned);
Six recurrence_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& bias,
                        const Tensor& spectrum, const Tensor& d, const Optional& mask, const Optional& cu_seqlens,
                        const Optional& z_bias, bool sectioned);
Tensor direct_recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& h, const Tensor& d,
                         const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias, bool causal);
Six direct_recurrence_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& bias,
                               const Tensor& h, const Tensor& d, const Optional& mask, const Optional& cu_seqlens,
                               const Optional& z_bias, bool causal);

// ops_filter.cpp
Tensor filter_spectrum(const Tensor& h, int64_t size, bool causal);
Tensor filter_spectrum_backward(const Tensor& ds, const Tensor& h, int64_t size, bool causal);
Tensor implicit_filter(const Tensor& features, const Tensor& time, const Tensor& first, const Tensor& inner,
                       const Tensor& biases, const Tensor& freq, const Tensor& out, const Tensor& deltas, double shift,
                       int64_t filters);
Eight implicit_filter_backward(const Tensor& dh, const Tensor& features, const Tensor& time, const Tensor& first,
                               const Tensor& inner, const Tensor& biases, const Tensor& freq, const Tensor& out,
                               const Tensor& deltas, double shift, bool with_inputs);

// ops_steps.cpp
Tensor short_step(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& memory);
Tensor modal_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& pole, const Tensor& residue,
                  const Tensor& first, const Tensor& memory);
Tensor window_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& h, const Tensor& memory);
Tensor gated_modal_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                        const Tensor& pole, const Tensor& residue, const Tensor& first, const Tensor& memory);
Tensor gated_window_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                         const Tensor& h, const Tensor& memory);

// ops_linear.cpp
Tensor project(const Tensor& u, const Tensor& weight, const Optional& bias);
Tensor project_channel_blocked(const Tensor& u, const Tensor& weight, const Optional& bias);
Tensor project_from_channel_blocked(const Tensor& u, const Tensor& weight, const Optional& bias);
std::tuple<Tensor, Tensor> project_backward(const Tensor& dy, const Tensor& u);

}  // namespace hyena
