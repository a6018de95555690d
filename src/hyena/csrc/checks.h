// Checks of the ops' arguments, the same for the CPU's and the GPU's kernels: shapes, dtypes, devices, and memory
// behind every element. An error is a std::invalid_argument (ValueError in Python) that names the argument, its shape,
// dtype and device, and those that it must have.
#pragma once

#include "tensors.h"

namespace hyena {

// One function for an op, its arguments in the op's own order; shapes and meaning are in hyena/ops.
void check_short_conv(const Tensor& z, const Tensor& weight, const Optional& bias, const Optional& mask,
                      const Optional& cu_seqlens);
void check_short_conv_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& mask,
                               const Optional& cu_seqlens);
void check_filter_spectrum(const Tensor& h, int64_t size, bool causal);
void check_filter_spectrum_backward(const Tensor& ds, const Tensor& h, int64_t size, bool causal);
void check_gated_conv(const Tensor& v, const Tensor& spectrum, const Optional& d, const Optional& pre,
                      const Optional& post, const Optional& cu_seqlens, bool sectioned);
void check_gated_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& spectrum, const Optional& d,
                               const Optional& pre, const Optional& post, const Optional& cu_seqlens, bool sectioned);
void check_add_conv(const Tensor& y, const Tensor& v, const Tensor& spectrum);
void check_direct_conv(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                       const Optional& cu_seqlens, bool causal);
void check_direct_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& h, const Optional& d,
                                const Optional& pre, const Optional& post, const Optional& cu_seqlens, bool causal);
void check_recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& spectrum,
                      const Tensor& d, const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias,
                      bool sectioned);
void check_recurrence_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& bias,
                               const Tensor& spectrum, const Tensor& d, const Optional& mask,
                               const Optional& cu_seqlens, const Optional& z_bias, bool sectioned);
void check_direct_recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& h,
                             const Tensor& d, const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias,
                             bool causal);
void check_direct_recurrence_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& bias,
                                      const Tensor& h, const Tensor& d, const Optional& mask,
                                      const Optional& cu_seqlens, const Optional& z_bias, bool causal);
void check_implicit_filter(const Tensor& features, const Tensor& time, const Tensor& first, const Tensor& inner,
                           const Tensor& biases, const Tensor& freq, const Tensor& out, const Tensor& deltas,
                           int64_t filters);
void check_implicit_filter_backward(const Tensor& dh, const Tensor& features, const Tensor& time, const Tensor& first,
                                    const Tensor& inner, const Tensor& biases, const Tensor& freq, const Tensor& out,
                                    const Tensor& deltas);
void check_short_step(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& memory);
void check_modal_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& pole,
                      const Tensor& residue, const Tensor& first, const Tensor& memory);
void check_window_step(const Tensor& x, const Optional& pre, const Optional& post, const Tensor& h,
                       const Tensor& memory);
void check_gated_modal_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                            const Tensor& pole, const Tensor& residue, const Tensor& first, const Tensor& memory);
void check_gated_window_step(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& last,
                             const Tensor& h, const Tensor& memory);
void check_project(const Tensor& u, const Tensor& weight, const Optional& bias);
void check_project_channel_blocked(const Tensor& u, const Tensor& weight, const Optional& bias);
void check_project_from_channel_blocked(const Tensor& u, const Tensor& weight, const Optional& bias);
void check_project_backward(const Tensor& g, const Tensor& u);

}  // namespace hyena
