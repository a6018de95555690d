// Convolutions along the sequence: short, gated and long, added to an output, and direct.
#include "ops.h"

namespace hyena {

Tensor short_conv(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in, const Optional& mask,
                  const Optional& cu_seqlens) {
    check_short_conv(z_in, weight_in, bias_in, mask, cu_seqlens);
    const Tensor z = channels_last(z_in), weight = parameter(weight_in, compute_type(z_in));
    const Tensor bias = bias_or_zeros(bias_in, weight, compute_type(z_in));
    Tensor y = empty(z, z.size(2));
    const SequenceRows rows(z, mask, cu_seqlens, kAnyLength);
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
    check_short_conv_backward(dy_in, z_in, weight_in, mask, cu_seqlens);
    const ScalarType type = compute_type(z_in);
    const Tensor z = channels_last(z_in), dy = channels_last(dy_in), weight = parameter(weight_in, type);
    Tensor dz = empty(z, z.size(2));
    Tensor dweight = zeros(weight, weight.sizes(), type);
    Tensor dbias = zeros(weight, {weight.size(0)}, type);
    const SequenceRows rows(z, mask, cu_seqlens, kAnyLength);
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

// Inputs of a convolution between gates; holds the tensors that its pointers point into. Rows are at most `longest`
// long.
template <class Args>
struct ConvInputs {
    const Tensor v, filter;
    const Optional pre, post, d;
    const SequenceRows rows;
    Args args{};

    ConvInputs(const Tensor& v_in, const Tensor& filter_in, const Optional& d_in, const Optional& pre_in,
               const Optional& post_in, const Optional& cu_seqlens, int64_t longest)
        : v(channels_last(v_in)),
          filter(filter_in),
          pre(channels_last(pre_in)),
          post(channels_last(post_in)),
          d(parameter(d_in, compute_type(v_in))),
          rows(v, std::nullopt, cu_seqlens, longest) {
        args.seq = rows.sequence;
        args.channels = v.size(2);
        args.v = array(v);
        args.pre = array(pre);
        args.post = array(post);
        args.d = d ? d->data_ptr() : nullptr;
    }
    ConvInputs(const ConvInputs&) = delete;  // args points into it
};

struct GatedInputs : ConvInputs<GatedConvArgs> {
    GatedInputs(const Tensor& v, const Tensor& spectrum, const Optional& d, const Optional& pre, const Optional& post,
                const Optional& cu_seqlens, bool sectioned)
        : ConvInputs(v, dense(spectrum), d, pre, post, cu_seqlens,
                     sectioned ? kAnyLength : spectra(spectrum, 1).points) {
        args.spectra = spectra(filter, 1);
    }
};

struct DirectInputs : ConvInputs<DirectConvArgs> {
    DirectInputs(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                 const Optional& cu_seqlens, bool causal)
        : ConvInputs(v, parameter(h, compute_type(v)), d, pre, post, cu_seqlens, kAnyLength) {
        args.filters = filter.size(1);
        args.taps = filter.size(0);
        args.causal = causal;
        args.h = filter.data_ptr();
    }
};

// Where a convolution's gradients go, but for its filter's; empty tensors for gates and d that are not there.
struct ConvGradients {
    const Tensor dy, dv, dpre, dpost, dd;

    template <class Args>
    ConvGradients(ConvInputs<Args>& in, const Tensor& dy_in)
        : dy(channels_last(dy_in)),
          dv(empty(in.v, in.v.size(2))),
          dpre(empty(in.v, in.pre ? in.v.size(2) : 0)),
          dpost(empty(in.v, in.post ? in.v.size(2) : 0)),
          dd(zeros(in.filter, {in.d ? in.v.size(2) : 0}, compute_type(in.v))) {
        in.args.dy = array(dy);
        in.args.dv = array(dv);
        in.args.dpre = in.pre ? array(dpre) : Array{};
        in.args.dpost = in.post ? array(dpost) : Array{};
        in.args.dd = in.d ? dd.data_ptr() : nullptr;
    }
};

}  // namespace

Tensor gated_conv(const Tensor& v, const Tensor& spectrum, const Optional& d, const Optional& pre, const Optional& post,
                  const Optional& cu_seqlens, bool sectioned) {
    check_gated_conv(v, spectrum, d, pre, post, cu_seqlens, sectioned);
    GatedInputs in(v, spectrum, d, pre, post, cu_seqlens, sectioned);
    Tensor y = empty(in.v, v.size(2));
    in.args.y = array(y);
    kernels().gated_conv(in.args);
    return in_order_of(y, v);
}

Five gated_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& spectrum, const Optional& d,
                         const Optional& pre, const Optional& post, const Optional& cu_seqlens, bool sectioned) {
    check_gated_conv_backward(dy, v, spectrum, d, pre, post, cu_seqlens, sectioned);
    GatedInputs in(v, spectrum, d, pre, post, cu_seqlens, sectioned);
    const ConvGradients to(in, dy);
    Tensor dspectrum = empty_spectrum(in.filter, 1, spectrum.size(0), spectrum.size(1) - 1);
    dspectrum = torch::stable::reshape(dspectrum, spectrum.sizes());
    in.args.dspectra = spectra(dspectrum, 1);
    kernels().gated_conv_backward(in.args);
    return {in_order_of(to.dv, v), in_order_of(to.dpre, pre), in_order_of(to.dpost, post), dspectrum, back(to.dd, d)};
}

void add_conv(const Tensor& y, const Tensor& v, const Tensor& spectrum) {
    check_add_conv(y, v, spectrum);
    if (y.numel() == 0) return;
    GatedInputs in(v, spectrum, std::nullopt, std::nullopt, std::nullopt, std::nullopt, false);
    Tensor sum = channels_last(y);  // y itself, unless its channels lie apart
    in.args.y = array(sum);
    in.args.positions_added = y.size(1);
    kernels().gated_conv(in.args);
    if (sum.data_ptr() != y.data_ptr()) {
        Tensor to = y;
        torch::stable::copy_(to, sum);
    }
}

Tensor direct_conv(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                   const Optional& cu_seqlens, bool causal) {
    check_direct_conv(v, h, d, pre, post, cu_seqlens, causal);
    DirectInputs in(v, h, d, pre, post, cu_seqlens, causal);
    Tensor y = empty(in.v, v.size(2));
    in.args.y = array(y);
    kernels().direct_conv(in.args);
    return in_order_of(y, v);
}

Five direct_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre,
                          const Optional& post, const Optional& cu_seqlens, bool causal) {
    check_direct_conv_backward(dy, v, h, d, pre, post, cu_seqlens, causal);
    DirectInputs in(v, h, d, pre, post, cu_seqlens, causal);
    const ConvGradients to(in, dy);
    const Tensor dh = zeros(in.filter, in.filter.sizes());
    in.args.dh = dh.data_ptr();
    kernels().direct_conv_backward(in.args);
    return {in_order_of(to.dv, v), back(dh, h), back(to.dd, d), in_order_of(to.dpre, pre), in_order_of(to.dpost, post)};
}

}  // namespace hyena
