// The mixing step.
#include "ops.h"

namespace hyena {
namespace {

MixArgs mix_args(const Tensor& z, const Tensor& weight, const Tensor& bias, const Tensor& spectrum, const Tensor& d) {
    MixArgs args{};
    args.channels = d.size(1);
    args.order = z.size(2) / d.size(1) - 1;
    args.z = array(z);
    args.filter = short_filter(weight, bias);
    args.spectra = spectra(spectrum, d.size(0));
    args.d = d.data_ptr();
    return args;
}

}  // namespace

Tensor mix(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in, const Tensor& spectrum_in, const Tensor& d_in,
           const Optional& mask, const Optional& cu_seqlens) {
    const ScalarType type = compute_type(z_in);
    const Tensor z = channels_last(z_in), weight = parameter(weight_in, type), bias = bias_or_zeros(bias_in, weight, type);
    const Tensor spectrum = torch::stable::contiguous(spectrum_in), d = parameter(d_in, type);
    Tensor y = empty(z, d.size(1));
    MixArgs args = mix_args(z, weight, bias, spectrum, d);
    const Rows rows(z, mask, cu_seqlens, args.spectra.points);
    args.seq = rows.sequence;
    args.y = array(y);
    kernels().mix(args);
    return in_order_of(y, z_in);
}

Five mix_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in,
                  const Tensor& spectrum_in, const Tensor& d_in, const Optional& mask, const Optional& cu_seqlens) {
    const ScalarType type = compute_type(z_in);
    const Tensor dy = channels_last(dy_in), z = channels_last(z_in), weight = parameter(weight_in, type);
    const Tensor bias = bias_or_zeros(bias_in, weight, type);
    const Tensor spectrum = torch::stable::contiguous(spectrum_in), d = parameter(d_in, type);
    Tensor dz = empty(z, z.size(2));
    Tensor dweight = torch::stable::new_zeros(weight, weight.sizes(), type);
    Tensor dbias = torch::stable::new_zeros(weight, {weight.size(0)}, type);
    Tensor dspectrum = empty_spectrum(spectrum, spectrum.size(0), spectrum.size(1), spectrum.size(2) - 1);
    Tensor dd = torch::stable::new_zeros(d, d.sizes(), type);
    MixArgs args = mix_args(z, weight, bias, spectrum, d);
    const Rows rows(z, mask, cu_seqlens, args.spectra.points);
    args.seq = rows.sequence;
    args.dy = array(dy);
    args.dz = array(dz);
    args.dweight = dweight.data_ptr();
    args.dbias = dbias.data_ptr();
    args.dspectra = spectra(dspectrum, d.size(0));
    args.dd = dd.data_ptr();
    kernels().mix_backward(args);
    return {in_order_of(dz, z_in), back(dweight, weight_in), back(dbias, weight_in), dspectrum, back(dd, d_in)};
}

}  // namespace hyena
