// Convolutions along the sequence: short, gated and long, added to an output, and direct.
#include "ops.h"

namespace hyena {

Tensor short_conv(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in, const Optional& mask,
                  const Optional& cu_seqlens) {
    const Tensor z = channels_last(z_in), weight = parameter(weight_in, compute_type(z_in));
    const Tensor bias = bias_or_zeros(bias_in, weight, compute_type(z_in));
    Tensor y = empty(z, z.size(2));
    const Rows rows(z, mask, cu_seqlens, kAnyLength);
    ShortConvArgs args{};
    args.seq = rows.sequence;
    args.channels = z.size(2);
    args.z = array(z);
    args.y = array(y);
    args.filter = short_filter(weight, bias);
    kernels().short_conv(args);
    return in_order_of(y, z_in);
}

Three short_conv_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight_in, const Optional& mask,
                          const Optional& cu_seqlens) {
    const ScalarType type = compute_type(z_in);
    const Tensor z = channels_last(z_in), dy = channels_last(dy_in), weight = parameter(weight_in, type);
    Tensor dz = empty(z, z.size(2));
    Tensor dweight = torch::stable::new_zeros(weight, weight.sizes(), type);
    Tensor dbias = torch::stable::new_zeros(weight, {weight.size(0)}, type);
    const Rows rows(z, mask, cu_seqlens, kAnyLength);
    ShortConvArgs args{};
    args.seq = rows.sequence;
    args.channels = z.size(2);
    args.z = array(z);
    args.dy = array(dy);
    args.dz = array(dz);
    args.filter = short_filter(weight, dbias);
    args.dweight = dweight.data_ptr();
    args.dbias = dbias.data_ptr();
    kernels().short_conv_backward(args);
    return {in_order_of(dz, z_in), back(dweight, weight_in), back(dbias, weight_in)};
}

namespace {

// Inputs of a gated convolution; holds the tensors that its pointers point into.
struct GatedInputs {
    const Tensor v, spectrum;
    const Optional pre, post;
    Optional d;
    const Rows rows;
    GatedConvArgs args{};

    GatedInputs(const Tensor& v_in, const Tensor& spectrum_in, const Optional& d_in, const Optional& pre_in, const Optional& post_in,
                const Optional& cu_seqlens)
        : v(channels_last(v_in)),
          spectrum(torch::stable::contiguous(spectrum_in)),
          pre(channels_last(pre_in)),
          post(channels_last(post_in)),
          rows(v, std::nullopt, cu_seqlens, spectra(spectrum, 1).points) {
        if (d_in) d = parameter(*d_in, compute_type(v_in));
        args.seq = rows.sequence;
        args.channels = v.size(2);
        args.spectra = spectra(spectrum, 1);
        args.v = array(v);
        args.pre = array(pre);
        args.post = array(post);
        args.d = d ? d->data_ptr() : nullptr;
    }
};

}  // namespace

Tensor gated_conv(const Tensor& v, const Tensor& spectrum, const Optional& d, const Optional& pre, const Optional& post,
                  const Optional& cu_seqlens) {
    GatedInputs in(v, spectrum, d, pre, post, cu_seqlens);
    Tensor y = empty(in.v, v.size(2));
    in.args.y = array(y);
    kernels().gated_conv(in.args);
    return in_order_of(y, v);
}

Five gated_conv_backward(const Tensor& dy_in, const Tensor& v, const Tensor& spectrum, const Optional& d, const Optional& pre,
                         const Optional& post, const Optional& cu_seqlens) {
    GatedInputs in(v, spectrum, d, pre, post, cu_seqlens);
    const Tensor dy = channels_last(dy_in);
    Tensor dv = empty(in.v, v.size(2)), dpre = empty(in.v, pre ? v.size(2) : 0), dpost = empty(in.v, post ? v.size(2) : 0);
    Tensor dspectrum = empty_spectrum(in.spectrum, 1, spectrum.size(0), spectrum.size(1) - 1);
    dspectrum = torch::stable::reshape(dspectrum, spectrum.sizes());
    Tensor dd = torch::stable::new_zeros(in.spectrum, {d ? v.size(2) : 0}, compute_type(v));
    in.args.dy = array(dy);
    in.args.dv = array(dv);
    in.args.dpre = pre ? array(dpre) : Array{};
    in.args.dpost = post ? array(dpost) : Array{};
    in.args.dspectra = spectra(dspectrum, 1);
    in.args.dd = d ? dd.data_ptr() : nullptr;
    kernels().gated_conv_backward(in.args);
    return {in_order_of(dv, v), pre ? in_order_of(dpre, *pre) : dpre, post ? in_order_of(dpost, *post) : dpost, dspectrum,
            d ? back(dd, *d) : dd};
}

void add_conv(const Tensor& y, const Tensor& v, const Tensor& spectrum) {
    if (y.numel() == 0) return;
    GatedInputs in(v, spectrum, std::nullopt, std::nullopt, std::nullopt, std::nullopt);
    Tensor sum = channels_last(y);  // y itself, unless its channels lie apart
    in.args.y = array(sum);
    in.args.added = y.size(1);
    kernels().gated_conv(in.args);
    if (sum.data_ptr() != y.data_ptr()) {
        Tensor to = y;
        torch::stable::copy_(to, sum);
    }
}

namespace {

// Inputs of a direct convolution; holds the tensors that its pointers point into.
struct DirectInputs {
    const Tensor v, h;
    const Optional pre, post;
    Optional d;
    const Rows rows;
    DirectConvArgs args{};

    DirectInputs(const Tensor& v_in, const Tensor& h_in, const Optional& d_in, const Optional& pre_in, const Optional& post_in,
                 const Optional& cu_seqlens, bool causal)
        : v(channels_last(v_in)),
          h(parameter(h_in, compute_type(v_in))),
          pre(channels_last(pre_in)),
          post(channels_last(post_in)),
          rows(v, std::nullopt, cu_seqlens, kAnyLength) {
        if (d_in) d = parameter(*d_in, compute_type(v_in));
        args.seq = rows.sequence;
        args.channels = v.size(2);
        args.filters = h.size(1);
        args.taps = h.size(0);
        args.causal = causal;
        args.v = array(v);
        args.pre = array(pre);
        args.post = array(post);
        args.h = h.data_ptr();
        args.d = d ? d->data_ptr() : nullptr;
    }
};

}  // namespace

Tensor direct_conv(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                   const Optional& cu_seqlens, bool causal) {
    DirectInputs in(v, h, d, pre, post, cu_seqlens, causal);
    Tensor y = empty(in.v, v.size(2));
    in.args.y = array(y);
    kernels().direct_conv(in.args);
    return in_order_of(y, v);
}

Five direct_conv_backward(const Tensor& dy_in, const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre,
                          const Optional& post, const Optional& cu_seqlens, bool causal) {
    DirectInputs in(v, h, d, pre, post, cu_seqlens, causal);
    const Tensor dy = channels_last(dy_in);
    Tensor dv = empty(in.v, v.size(2)), dpre = empty(in.v, pre ? v.size(2) : 0), dpost = empty(in.v, post ? v.size(2) : 0);
    Tensor dh = torch::stable::new_zeros(in.h, in.h.sizes()), dd = torch::stable::new_zeros(in.h, {d ? v.size(2) : 0});
    in.args.dy = array(dy);
    in.args.dv = array(dv);
    in.args.dpre = pre ? array(dpre) : Array{};
    in.args.dpost = post ? array(dpost) : Array{};
    in.args.dh = dh.data_ptr();
    in.args.dd = d ? dd.data_ptr() : nullptr;
    kernels().direct_conv_backward(in.args);
    return {in_order_of(dv, v), back(dh, h), d ? back(dd, *d) : dd, pre ? in_order_of(dpre, *pre) : dpre,
            post ? in_order_of(dpost, *post) : dpost};
}

}  // namespace hyena
