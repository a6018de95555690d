// Registers the CUDA kernels under the ops that Python defines. Stable ABI: this file serves every torch from 2.11 on.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../../checks.h"
#include "arrays.h"
#include "direct.h"
#include "fallback.h"
#include "recurrence.h"

namespace hyena::cuda {
namespace {

Tensor short_conv(const Tensor& z_in, const Tensor& weight, const Optional& bias, const Optional& mask,
                  const Optional& cu_seqlens) {
    check_short_conv(z_in, weight, bias, mask, cu_seqlens);
    if (!takes(z_in)) return fallback<Tensor>("hyena::short_conv_fallback", z_in, weight, bias, mask, cu_seqlens);
    const Guard guard(z_in);
    const Tensor z = positions_last(z_in), y = empty(z, z.size(2));
    const Projections parts(z, weight, bias);
    const Input input(z, mask, cu_seqlens, kAnyLength, z.size(2));
    multiply(input.call, parts.from(0), {}, array(y));
    return in_order_of(y, z_in);
}

std::tuple<Tensor, Tensor, Tensor> short_conv_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight,
                                                       const Optional& mask, const Optional& cu_seqlens) {
    check_short_conv_backward(dy_in, z_in, weight, mask, cu_seqlens);
    if (!takes(z_in))
        return fallback<std::tuple<Tensor, Tensor, Tensor>>("hyena::short_conv_backward_fallback", dy_in, z_in, weight,
                                                            mask, cu_seqlens);
    const Guard guard(z_in);
    const Tensor z = positions_last(z_in), dy = positions_last(dy_in), dz = empty(z, z.size(2));
    const Projections parts(z, weight, std::nullopt);
    const Tensor dweight = allocate(parts.weight, parts.weight.sizes());
    const Tensor dbias = allocate(parts.weight, {z.size(2)});
    const Input input(z, mask, cu_seqlens, kAnyLength, z.size(2));
    short_conv_gradient(input.call, parts.from(0), operand(dy), array(dz), floats(dweight), floats(dbias));
    return {in_order_of(dz, z_in), back(dweight, weight), back(dbias, weight)};
}

// Taps to spectra (filters, room, 2); or the gradients of spectra to those of taps.
template <bool kGradient>
void transform_filters(const Taps& taps, const Tensor& spectra, int64_t filters, int64_t room) {
    const Device device = device_of(spectra);
    const auto prepared = prepare(taps.points, filters, spectra, device);
    const Plan& plan = prepared->plan;
    const Call call{device, spectra, {}, filters};
    Cx* points = static_cast<Cx*>(spectra.data_ptr());
    if (!plan.split) {
        call.run(kGradient ? "spectrum's gradient" : "spectrum",
                 Spectrum<kGradient>{plan.whole, filters, room, taps, points}, threads_for(plan.whole.size()),
                 shared_bytes(plan.whole.size()));
        return;
    }
    const Rounds rounds(call, 1, plan.points * int64_t(sizeof(Cx)));
    const Tensor memory = call.scratch(rounds.pairs() * plan.points * 2);
    Cx* scratch = static_cast<Cx*>(memory.data_ptr());
    rounds.each([&](const Pairs& pairs) {
        const SpectrumColumns<kGradient> columns{columns_of(plan, pairs, scratch), taps};
        const SpectrumRows<kGradient> rows{rows_of(plan), pairs, room, scratch, points};
        if constexpr (kGradient) {
            run_rows(call, "rows of the filter's gradient", rows, plan);
            run_columns(call, "columns of the filter's gradient", columns, plan);
        } else {
            run_columns(call, "columns of the filter", columns, plan);
            run_rows(call, "rows of the filter", rows, plan);
        }
    });
}

Tensor filter_spectrum(const Tensor& h_in, int64_t size, bool causal) {
    check_filter_spectrum(h_in, size, causal);
    if (!takes(h_in, points_of(size))) return fallback<Tensor>("hyena::filter_spectrum_fallback", h_in, size, causal);
    const Guard guard(h_in);
    const int64_t filters = h_in.size(0) * h_in.size(2), points = points_of(size),
                  lags = causal ? h_in.size(1) : (h_in.size(1) + 1) / 2;
    const Tensor h = dense(torch::stable::transpose(parameter(h_in, kCompute), 1, 2));
    const Tensor spectrum = allocate(h, {h_in.size(0), h_in.size(2), size + 1, 2});
    if (filters > 0) transform_filters<false>({floats(h), lags, points, causal}, spectrum, filters, size + 1);
    return spectrum;
}

Tensor filter_spectrum_backward(const Tensor& ds_in, const Tensor& h, int64_t size, bool causal) {
    check_filter_spectrum_backward(ds_in, h, size, causal);
    if (!takes(h, points_of(size)))
        return fallback<Tensor>("hyena::filter_spectrum_backward_fallback", ds_in, h, size, causal);
    const Guard guard(h);
    const int64_t filters = h.size(0) * h.size(2), points = points_of(size),
                  lags = causal ? h.size(1) : (h.size(1) + 1) / 2;
    const Tensor ds = spectrum_memory(ds_in), dh = allocate(ds, {h.size(0), h.size(2), h.size(1)});
    if (filters > 0 && lags > 0) transform_filters<true>({floats(dh), lags, points, causal}, ds, filters, size + 1);
    return back(dense(torch::stable::transpose(dh, 1, 2)), h);
}

Tensor gated_conv(const Tensor& v_in, const Tensor& spectrum_in, const Optional& d_in, const Optional& pre_in,
                  const Optional& post_in, const Optional& cu_seqlens, bool sectioned) {
    check_gated_conv(v_in, spectrum_in, d_in, pre_in, post_in, cu_seqlens, sectioned);
    if (!takes(v_in, size_of(spectrum_in)))
        return fallback<Tensor>("hyena::gated_conv_fallback", v_in, spectrum_in, d_in, pre_in, post_in, cu_seqlens,
                                sectioned);
    refuse_sections(sectioned);
    const Guard guard(v_in);
    const Tensor v = positions_last(v_in), spectrum = spectrum_memory(spectrum_in), y = empty(v, v.size(2));
    const Optional pre = positions_last(pre_in), post = positions_last(post_in), d = parameter(d_in, kCompute);
    const Input input(v, std::nullopt, cu_seqlens, size_of(spectrum), v.size(2));
    const auto prepared = prepare(size_of(spectrum), v.size(2), spectrum, input.call.device);
    forward(input.call, *prepared,
            {operand(v), operand(pre), operand(post), spectra_of(spectrum, v.size(2)), 0, d ? floats(*d) : nullptr},
            array(y));
    return in_order_of(y, v_in);
}

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five gated_conv_backward(const Tensor& dy_in, const Tensor& v_in, const Tensor& spectrum_in, const Optional& d_in,
                         const Optional& pre_in, const Optional& post_in, const Optional& cu_seqlens, bool sectioned) {
    check_gated_conv_backward(dy_in, v_in, spectrum_in, d_in, pre_in, post_in, cu_seqlens, sectioned);
    if (!takes(v_in, size_of(spectrum_in)))
        return fallback<Five>("hyena::gated_conv_backward_fallback", dy_in, v_in, spectrum_in, d_in, pre_in, post_in,
                              cu_seqlens, sectioned);
    refuse_sections(sectioned);
    const Guard guard(v_in);
    const Tensor dy = positions_last(dy_in), v = positions_last(v_in), spectrum = spectrum_memory(spectrum_in);
    const Optional pre = positions_last(pre_in), post = positions_last(post_in), d = parameter(d_in, kCompute);
    const int64_t channels = v.size(2);
    const Tensor dv = empty(v, channels), none = allocate(v, {v.size(0), v.size(1), 0});
    const Tensor dpre = pre ? empty(v, channels) : none;
    const Tensor dpost = post ? empty(v, channels) : allocate(v, {v.size(0), v.size(1), 0});
    const Tensor dspectrum = allocate(spectrum, spectrum.sizes());
    const Tensor dd = allocate(spectrum, {d ? channels : 0});
    const Input input(v, std::nullopt, cu_seqlens, size_of(spectrum), channels);
    const auto prepared = prepare(size_of(spectrum), channels, spectrum, input.call.device);
    StepGradients to{array(dv),         pre ? array(dpre) : Array{}, post ? array(dpost) : Array{},
                     floats(dspectrum), d ? floats(dd) : nullptr,    {}};
    backward(input.call, *prepared,
             {operand(v), operand(pre), operand(post), spectra_of(spectrum, channels), 0, d ? floats(*d) : nullptr},
             operand(dy), false, to);
    return {in_order_of(dv, v_in), in_order_of(dpre, pre_in), in_order_of(dpost, post_in), dspectrum, back(dd, d_in)};
}

}  // namespace
}  // namespace hyena::cuda

#if defined(HYENA_EMULATE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hyena, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(hyena, CUDA, m) {
#endif
    m.impl("short_conv", TORCH_BOX(&hyena::cuda::short_conv));
    m.impl("short_conv_backward", TORCH_BOX(&hyena::cuda::short_conv_backward));
    m.impl("filter_spectrum", TORCH_BOX(&hyena::cuda::filter_spectrum));
    m.impl("filter_spectrum_backward", TORCH_BOX(&hyena::cuda::filter_spectrum_backward));
    m.impl("gated_conv", TORCH_BOX(&hyena::cuda::gated_conv));
    m.impl("gated_conv_backward", TORCH_BOX(&hyena::cuda::gated_conv_backward));
    m.impl("direct_conv", TORCH_BOX(&hyena::cuda::direct_conv));
    m.impl("direct_conv_backward", TORCH_BOX(&hyena::cuda::direct_conv_backward));
    m.impl("recurrence", TORCH_BOX(&hyena::cuda::recurrence));
    m.impl("recurrence_backward", TORCH_BOX(&hyena::cuda::recurrence_backward));
}

// For Python: whether kernels, rather than fallbacks, run for a dtype on a device. Not where there is no such device.
extern "C" __attribute__((visibility("default"))) int hyena_cuda_takes(int device, int is_double) noexcept {
    try {
        return !is_double && hyena::cuda::supported(device);
    } catch (...) {
        return 0;
    }
}

// Whether they run for transforms of P points there, and spectra are theirs.
extern "C" __attribute__((visibility("default"))) int hyena_cuda_has_plan(int device, int64_t points) noexcept {
    try {
        return hyena::cuda::has_plan(points, device);
    } catch (...) {
        return 0;
    }
}

#if defined(HYENA_EMULATE_CUDA)
extern "C" __attribute__((visibility("default"))) const char* hyena_cpu_kernels() { return "emulated CUDA"; }
#endif
