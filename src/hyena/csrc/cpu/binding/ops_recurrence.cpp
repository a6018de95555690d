// The mixing step from z to y: hyena::recurrence, and hyena::direct_recurrence with few taps.
#include "ops.h"

namespace hyena {
namespace {

RecurrenceArgs recurrence_args(const Tensor& z, const Tensor& weight, const Tensor& bias, const Tensor& spectrum,
                               const Tensor& d) {
    RecurrenceArgs args{};
    args.channels = d.size(1);
    args.order = channels_of(z) / d.size(1) - 1;
    args.z = array(z);
    args.short_filter = short_filter(weight, bias);
    args.spectra = spectra(spectrum, d.size(0));
    args.d = d.data_ptr();
    return args;
}

// z + z_bias, contiguous, in the precision of the arithmetic. Kernels of the recurrence on the CPU know of no such
// bias: the projections there add their own as they write.
Tensor with_bias(const Tensor& z_in, const Tensor& z_bias) {
    const ScalarType type = compute_type(z_in);
    const Tensor z = channels_last(z_in), bias = parameter(z_bias, type);
    const Tensor sum = empty(z, channels_of(z), type);
    ChannelBiasArgs args = channel_bias_args(z);
    args.y = array(sum);
    args.bias = bias.const_data_ptr();
    kernels().channel_bias(args);
    return sum;
}

// The sum of a sequence over all but its channels.
Tensor sum_of_rows(const Tensor& t) {
    const Tensor x = channels_last(t), sum = allocate(t, {channels_of(t)}, compute_type(t));
    ChannelBiasArgs args = channel_bias_args(x);
    args.dbias = sum.data_ptr();
    kernels().channel_bias_backward(args);
    return sum;
}

}  // namespace

Tensor recurrence(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in, const Tensor& spectrum_in,
                  const Tensor& d_in, const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias,
                  bool sectioned) {
    check_recurrence(z_in, weight_in, bias_in, spectrum_in, d_in, mask, cu_seqlens, z_bias, sectioned);
    if (z_bias) {
        const Tensor y = recurrence(with_bias(z_in, *z_bias), weight_in, bias_in, spectrum_in, d_in, mask, cu_seqlens,
                                    std::nullopt, sectioned);
        return in_order_of(back(y, z_in), z_in);
    }
    const ScalarType type = compute_type(z_in);
    const Tensor z = channels_last(z_in), weight = parameter(weight_in, type),
                 bias = bias_or_zeros(bias_in, weight, type);
    const Tensor spectrum = dense(spectrum_in), d = parameter(d_in, type);
    Tensor y = empty(z, d.size(1));
    RecurrenceArgs args = recurrence_args(z, weight, bias, spectrum, d);
    const SequenceRows rows(z, mask, cu_seqlens, sectioned ? kAnyLength : args.spectra.points);
    args.seq = rows.sequence;
    args.y = array(y);
    kernels().recurrence(args);
    return in_order_of(y, z_in);
}

Six recurrence_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in,
                        const Tensor& spectrum_in, const Tensor& d_in, const Optional& mask, const Optional& cu_seqlens,
                        const Optional& z_bias, bool sectioned) {
    check_recurrence_backward(dy_in, z_in, weight_in, bias_in, spectrum_in, d_in, mask, cu_seqlens, z_bias, sectioned);
    const ScalarType type = compute_type(z_in);
    if (z_bias) {
        const Tensor dy = converted(dy_in, type), z = with_bias(z_in, *z_bias);
        auto [dz, dweight, dbias, dspectrum, dd, none] =
            recurrence_backward(dy, z, weight_in, bias_in, spectrum_in, d_in, mask, cu_seqlens, {}, sectioned);
        return {in_order_of(back(dz, z_in), z_in), dweight, dbias, dspectrum, dd, back(sum_of_rows(dz), *z_bias)};
    }
    const Tensor dy = channels_last(dy_in), z = channels_last(z_in), weight = parameter(weight_in, type);
    const Tensor bias = bias_or_zeros(bias_in, weight, type);
    const Tensor spectrum = dense(spectrum_in), d = parameter(d_in, type);
    Tensor dz = empty(z, channels_of(z));
    Tensor dweight = zeros(weight, weight.sizes(), type);
    Tensor dbias = zeros(weight, {weight.size(0)}, type);
    Tensor dspectrum = empty_spectrum(spectrum, spectrum.size(0), spectrum.size(1), spectrum.size(2) - 1);
    Tensor dd = zeros(d, d.sizes(), type);
    RecurrenceArgs args = recurrence_args(z, weight, bias, spectrum, d);
    const SequenceRows rows(z, mask, cu_seqlens, sectioned ? kAnyLength : args.spectra.points);
    args.seq = rows.sequence;
    args.dy = array(dy);
    args.dz = array(dz);
    args.dweight = dweight.data_ptr();
    args.dbias = dbias.data_ptr();
    args.dspectra = spectra(dspectrum, d.size(0));
    args.dd = dd.data_ptr();
    kernels().recurrence_backward(args);
    return {in_order_of(dz, z_in), back(dweight, weight_in), back(dbias, weight_in), dspectrum,
            back(dd, d_in),        allocate(weight_in, {0})};
}

namespace {

// A call's arguments but for z's gradient; holds the tensors that they point into.
struct DirectMixing {
    const Tensor z, weight, bias, h, d;
    const SequenceRows rows;
    DirectRecurrenceArgs args{};

    DirectMixing(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in, const Tensor& h_in,
                 const Tensor& d_in, const Optional& mask, const Optional& cu_seqlens, bool causal)
        : z(channels_last(z_in)),
          weight(parameter(weight_in, compute_type(z_in))),
          bias(bias_or_zeros(bias_in, weight, compute_type(z_in))),
          h(parameter(h_in, compute_type(z_in))),
          d(parameter(d_in, compute_type(z_in))),
          rows(z, mask, cu_seqlens, kAnyLength) {
        args.seq = rows.sequence;
        args.channels = d.size(0);
        args.order = channels_of(z) / d.size(0) - 1;
        args.taps = h.size(0);
        args.filters = h.size(1);
        args.causal = causal;
        args.z = array(z);
        args.short_filter = short_filter(weight, bias);
        args.h = h.data_ptr();
        args.d = d.data_ptr();
    }
    DirectMixing(const DirectMixing&) = delete;  // args points into it
};

}  // namespace

Tensor direct_recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& h, const Tensor& d,
                         const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias, bool causal) {
    check_direct_recurrence(z, weight, bias, h, d, mask, cu_seqlens, z_bias, causal);
    if (z_bias) {
        const Tensor sum = with_bias(z, *z_bias);
        return in_order_of(back(direct_recurrence(sum, weight, bias, h, d, mask, cu_seqlens, std::nullopt, causal), z),
                           z);
    }
    DirectMixing in(z, weight, bias, h, d, mask, cu_seqlens, causal);
    const Tensor y = empty(in.z, in.args.channels);
    in.args.y = array(y);
    kernels().direct_recurrence(in.args);
    return in_order_of(y, z);
}

Six direct_recurrence_backward(const Tensor& dy_in, const Tensor& z, const Tensor& weight, const Optional& bias,
                               const Tensor& h, const Tensor& d, const Optional& mask, const Optional& cu_seqlens,
                               const Optional& z_bias, bool causal) {
    check_direct_recurrence_backward(dy_in, z, weight, bias, h, d, mask, cu_seqlens, z_bias, causal);
    const ScalarType type = compute_type(z);
    if (z_bias) {
        auto [dz, dweight, dbias, dh, dd, none] = direct_recurrence_backward(
            converted(dy_in, type), with_bias(z, *z_bias), weight, bias, h, d, mask, cu_seqlens, std::nullopt, causal);
        return {in_order_of(back(dz, z), z), dweight, dbias, dh, dd, back(sum_of_rows(dz), *z_bias)};
    }
    DirectMixing in(z, weight, bias, h, d, mask, cu_seqlens, causal);
    const Tensor dy = channels_last(dy_in), dz = empty(in.z, channels_of(z));
    const Tensor dweight = zeros(in.weight, in.weight.sizes()), dbias = zeros(in.weight, {in.weight.size(0)});
    const Tensor dh = zeros(in.h, in.h.sizes()), dd = zeros(in.d, in.d.sizes());
    in.args.dy = array(dy);
    in.args.dz = array(dz);
    in.args.dweight = dweight.data_ptr();
    in.args.dbias = dbias.data_ptr();
    in.args.dh = dh.data_ptr();
    in.args.dd = dd.data_ptr();
    kernels().direct_recurrence_backward(in.args);
    return {in_order_of(dz, z), back(dweight, weight), back(dbias, weight),
            back(dh, h),        back(dd, d),           allocate(weight, {0})};
}

}  // namespace hyena
