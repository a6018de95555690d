// Registers the CPU kernels under the ops that Python defines. Stable ABI: this file serves every torch from 2.11 on.

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "../tensors.h"
#include "kernels.h"
#include "memory.h"

namespace hyena {
namespace {

Storage storage_of(const Tensor& t) {
    switch (t.scalar_type()) {
        case ScalarType::Float: return Storage::kFloat;
        case ScalarType::Double: return Storage::kDouble;
        case ScalarType::BFloat16: return Storage::kBFloat16;
        case ScalarType::Half: return Storage::kFloat16;
        default: STD_TORCH_CHECK(false, "hyena: expected float64, float32, bfloat16 or float16");
    }
}

ScalarType compute_type(const Tensor& t) {
    return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Pool pool() {
    return {int(torch::stable::get_num_threads()), [](int64_t count, void (*body)(void*, int64_t), void* context) {
                torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) body(context, i);
                });
            }};
}

// ---- memory order: channels contiguous for the kernels, the caller's order outside ---------------------------------

Tensor channels_last(const Tensor& t) {
    return t.size(2) == 1 || t.stride(2) == 1 ? t : torch::stable::contiguous(t);
}

Array array(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

int64_t element_size(const Tensor& t) {
    const ScalarType type = t.scalar_type();
    return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

// Large results are new memory at every call, and their pages come as they are first written: ask for huge ones.
Tensor with_huge_pages(Tensor t) {
    ask_for_huge_pages(t.data_ptr(), t.numel() * element_size(t));
    return t;
}

Tensor empty(const Tensor& like, int64_t channels) {
    return with_huge_pages(torch::stable::new_empty(like, {like.size(0), like.size(1), channels}));
}

// `y`, made contiguous by a kernel, in the order of `z`.
Tensor in_order_of(const Tensor& y, const Tensor& z) {
    if (!is_channel_major(z)) return y;
    Tensor swapped = torch::stable::new_empty(y, {y.size(0), y.size(2), y.size(1)});
    Tensor view = torch::stable::transpose(swapped, 1, 2);
    torch::stable::copy_(view, y);
    return view;
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Everything about the sequences of a call; holds the tensors that its pointers point into.
struct Rows {
    std::vector<Row> rows;
    Tensor mask;
    Sequence sequence;

    Rows(const Tensor& z, const Optional& given, const Optional& cu_seqlens, int64_t longest) {
        const int64_t batch = z.size(0), length = z.size(1);
        if (cu_seqlens) {
            Tensor offsets = parameter(*cu_seqlens, ScalarType::Long);
            const int64_t* at = static_cast<const int64_t*>(offsets.const_data_ptr());
            const int64_t count = offsets.size(0);
            STD_TORCH_CHECK(batch == 1 && count >= 2 && at[0] == 0 && at[count - 1] == length,
                            "hyena: cu_seqlens must rise from 0 to the packed length ", length, " of one row");
            for (int64_t i = 0; i + 1 < count; ++i) {
                STD_TORCH_CHECK(at[i] <= at[i + 1] && at[i + 1] - at[i] <= longest, "hyena: cu_seqlens holds a row of ",
                                at[i + 1] - at[i], " positions, but its spectrum serves rows of 0 to ", longest);
                if (at[i] < at[i + 1]) rows.push_back({0, at[i], at[i + 1] - at[i]});
            }
        } else {
            STD_TORCH_CHECK(length <= longest, "hyena: a row of ", length, " positions needs a spectrum of that size, not ",
                            longest);
            for (int64_t b = 0; b < batch; ++b) rows.push_back({b, 0, length});
        }
        const uint8_t* keep = nullptr;
        if (given) {
            mask = torch::stable::contiguous(*given);
            keep = static_cast<const uint8_t*>(mask.const_data_ptr());
        }
        sequence = {rows.data(), int64_t(rows.size()), keep, length, storage_of(z), pool()};
    }
};

// (…, G, size + 1, 2).
Spectra spectra(const Tensor& t, int64_t filters) {
    const int64_t channels = t.size(t.dim() - 3), size = t.size(t.dim() - 2) - 1;
    return {t.data_ptr(), channels * (size + 1) * 2, filters, channels, points_of(size)};
}

// New memory for spectra of `points` points; the room beyond is zero.
Tensor empty_spectrum(const Tensor& like, int64_t filters, int64_t channels, int64_t size) {
    Tensor t = with_huge_pages(torch::stable::new_empty(like, {filters, channels, size + 1, 2}));
    const int64_t used = channels * points_of(size) * 2, all = channels * (size + 1) * 2, bytes = element_size(t);
    for (int64_t f = 0; f < filters; ++f)
        std::memset(static_cast<char*>(t.data_ptr()) + (f * all + used) * bytes, 0, (all - used) * bytes);
    return t;
}

ShortFilter short_filter(const Tensor& weight, const Tensor& bias) {
    return {weight.data_ptr(), bias.data_ptr(), weight.size(1)};
}

Tensor bias_or_zeros(const Optional& bias, const Tensor& weight, ScalarType type) {
    return bias ? parameter(*bias, type) : torch::stable::new_zeros(weight, {weight.size(0)}, type);
}

// ---- ops ------------------------------------------------------------------------------------------------------------

constexpr int64_t kAnyLength = int64_t(1) << 62;

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

std::tuple<Tensor, Tensor, Tensor> short_conv_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight_in,
                                                       const Optional& mask, const Optional& cu_seqlens) {
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

SpectrumArgs spectrum_args(const Tensor& h, const Tensor& spectrum, bool causal) {
    SpectrumArgs args{};
    args.spectra = spectra(spectrum, h.size(0));
    args.taps = h.data_ptr();
    args.lags = causal ? h.size(1) : (h.size(1) + 1) / 2;
    args.causal = causal;
    args.is_double = h.scalar_type() == ScalarType::Double;
    args.pool = pool();
    return args;
}

Tensor filter_spectrum(const Tensor& h_in, int64_t size, bool causal) {
    const Tensor h = parameter(h_in, compute_type(h_in));
    Tensor spectrum = empty_spectrum(h, h.size(0), h.size(2), size);
    kernels().spectrum(spectrum_args(h, spectrum, causal));
    return spectrum;
}

Tensor filter_spectrum_backward(const Tensor& ds_in, const Tensor& h_in, int64_t, bool causal) {
    const Tensor ds = torch::stable::contiguous(ds_in);
    Tensor dh = with_huge_pages(torch::stable::new_empty(ds, h_in.sizes()));
    kernels().spectrum_backward(spectrum_args(dh, ds, causal));
    return back(dh, h_in);
}

Array optional_array(const Optional& t) { return t ? array(*t) : Array{}; }

Optional channels_last(const Optional& t) {
    if (!t) return std::nullopt;
    return channels_last(*t);
}

Tensor gated_conv(const Tensor& v_in, const Tensor& spectrum_in, const Optional& d_in, const Optional& pre_in,
                  const Optional& post_in, const Optional& cu_seqlens) {
    const Tensor v = channels_last(v_in), spectrum = torch::stable::contiguous(spectrum_in);
    const Optional pre = channels_last(pre_in), post = channels_last(post_in);
    Optional d;
    if (d_in) d = parameter(*d_in, compute_type(v_in));
    Tensor y = empty(v, v.size(2));
    GatedConvArgs args{};
    args.spectra = spectra(spectrum, 1);
    const Rows rows(v, std::nullopt, cu_seqlens, args.spectra.points);
    args.seq = rows.sequence;
    args.channels = v.size(2);
    args.v = array(v);
    args.pre = optional_array(pre);
    args.post = optional_array(post);
    args.y = array(y);
    args.d = d ? d->data_ptr() : nullptr;
    kernels().gated_conv(args);
    return in_order_of(y, v_in);
}

void add_conv(const Tensor& y, const Tensor& v_in, const Tensor& spectrum_in) {
    if (y.numel() == 0) return;
    const Tensor v = channels_last(v_in), spectrum = torch::stable::contiguous(spectrum_in);
    Tensor sum = channels_last(y);  // y itself, unless its channels lie apart
    GatedConvArgs args{};
    args.spectra = spectra(spectrum, 1);
    const Rows rows(v, std::nullopt, std::nullopt, args.spectra.points);
    args.seq = rows.sequence;
    args.channels = v.size(2);
    args.v = array(v);
    args.y = array(sum);
    args.added = y.size(1);
    kernels().gated_conv(args);
    if (sum.data_ptr() != y.data_ptr()) {
        Tensor to = y;
        torch::stable::copy_(to, sum);
    }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gated_conv_backward(const Tensor& dy_in, const Tensor& v_in,
                                                                       const Tensor& spectrum_in, const Optional& d_in,
                                                                       const Optional& pre_in, const Optional& post_in,
                                                                       const Optional& cu_seqlens) {
    const ScalarType type = compute_type(v_in);
    const Tensor dy = channels_last(dy_in), v = channels_last(v_in), spectrum = torch::stable::contiguous(spectrum_in);
    const Optional pre = channels_last(pre_in), post = channels_last(post_in);
    Optional d;
    if (d_in) d = parameter(*d_in, type);
    Tensor dv = empty(v, v.size(2)), dpre = empty(v, pre ? v.size(2) : 0), dpost = empty(v, post ? v.size(2) : 0);
    Tensor dspectrum = torch::stable::reshape(empty_spectrum(spectrum, 1, spectrum.size(0), spectrum.size(1) - 1), spectrum.sizes());
    Tensor dd = torch::stable::new_zeros(spectrum, {d ? v.size(2) : 0}, type);
    GatedConvArgs args{};
    args.spectra = spectra(spectrum, 1);
    const Rows rows(v, std::nullopt, cu_seqlens, args.spectra.points);
    args.seq = rows.sequence;
    args.channels = v.size(2);
    args.v = array(v);
    args.pre = optional_array(pre);
    args.post = optional_array(post);
    args.d = d ? d->data_ptr() : nullptr;
    args.dy = array(dy);
    args.dv = array(dv);
    args.dpre = pre ? array(dpre) : Array{};
    args.dpost = post ? array(dpost) : Array{};
    args.dspectra = spectra(dspectrum, 1);
    args.dd = d ? dd.data_ptr() : nullptr;
    kernels().gated_conv_backward(args);
    return {in_order_of(dv, v_in), pre ? in_order_of(dpre, *pre_in) : dpre, post ? in_order_of(dpost, *post_in) : dpost,
            dspectrum, d ? back(dd, *d_in) : dd};
}

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
        args.pre = optional_array(pre);
        args.post = optional_array(post);
        args.h = h.data_ptr();
        args.d = d ? d->data_ptr() : nullptr;
    }
};

Tensor direct_conv(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                   const Optional& cu_seqlens, bool causal) {
    DirectInputs in(v, h, d, pre, post, cu_seqlens, causal);
    Tensor y = empty(in.v, v.size(2));
    in.args.y = array(y);
    kernels().direct_conv(in.args);
    return in_order_of(y, v);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> direct_conv_backward(const Tensor& dy_in, const Tensor& v, const Tensor& h,
                                                                        const Optional& d, const Optional& pre,
                                                                        const Optional& post, const Optional& cu_seqlens,
                                                                        bool causal) {
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight_in,
                                                                const Optional& bias_in, const Tensor& spectrum_in,
                                                                const Tensor& d_in, const Optional& mask,
                                                                const Optional& cu_seqlens) {
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

// The tensors of a filter, in arithmetic precision and contiguous.
struct FilterTensors {
    std::array<Tensor, 8> all;  // features, time, first, inner, biases, freq, out, deltas
    ImplicitFilterArgs args{};

    FilterTensors(std::array<Tensor, 8> given, double shift, int64_t filters) : all(std::move(given)) {
        for (Tensor& t : all) t = torch::stable::contiguous(t);
        const auto& [features, time, first, inner, biases, freq, out, deltas] = all;
        args.taps = features.size(0);
        args.features = features.size(1);
        args.width = freq.size(0);
        args.inner_layers = inner.size(0);
        args.filters = filters;
        args.channels = out.size(0) / filters;
        args.is_double = features.scalar_type() == ScalarType::Double;
        args.shift = shift;
        args.input = features.const_data_ptr();
        args.time = time.const_data_ptr();
        args.first = first.const_data_ptr();
        args.inner = inner.const_data_ptr();
        args.biases = biases.const_data_ptr();
        args.freq = freq.const_data_ptr();
        args.out = out.const_data_ptr();
        args.deltas = deltas.const_data_ptr();
        args.pool = pool();
    }
};

Tensor implicit_filter(const Tensor& features, const Tensor& time, const Tensor& first, const Tensor& inner, const Tensor& biases,
                       const Tensor& freq, const Tensor& out, const Tensor& deltas, double shift, int64_t filters) {
    FilterTensors f({features, time, first, inner, biases, freq, out, deltas}, shift, filters);
    Tensor h = with_huge_pages(torch::stable::new_empty(features, {filters, f.args.taps, f.args.channels}));
    f.args.h = h.data_ptr();
    kernels().implicit_filter(f.args);
    return h;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> implicit_filter_backward(
    const Tensor& dh_in, const Tensor& features, const Tensor& time, const Tensor& first, const Tensor& inner, const Tensor& biases,
    const Tensor& freq, const Tensor& out, const Tensor& deltas, double shift, bool every) {
    FilterTensors f({features, time, first, inner, biases, freq, out, deltas}, shift, dh_in.size(0));
    const Tensor dh = torch::stable::contiguous(dh_in);
    const auto zeros = [&](int i, bool wanted) {
        return wanted ? torch::stable::new_zeros(f.all[i], f.all[i].sizes()) : torch::stable::new_zeros(f.all[i], {0});
    };
    Tensor dfeatures = zeros(0, every), dtime = zeros(1, every), dfirst = zeros(2, true), dinner = zeros(3, true);
    Tensor dbiases = zeros(4, true), dfreq = zeros(5, true), dout = zeros(6, true), ddeltas = zeros(7, every);
    f.args.dh = dh.const_data_ptr();
    if (every) {
        f.args.dinput = dfeatures.data_ptr();
        f.args.dtime = dtime.data_ptr();
        f.args.ddeltas = ddeltas.data_ptr();
    }
    f.args.dfirst = dfirst.data_ptr();
    f.args.dinner = dinner.data_ptr();
    f.args.dbiases = dbiases.data_ptr();
    f.args.dfreq = dfreq.data_ptr();
    f.args.dout = dout.data_ptr();
    kernels().implicit_filter_backward(f.args);
    return {dfeatures, dtime, dfirst, dinner, dbiases, dfreq, dout, ddeltas};
}

// Fewer rows are not worth putting the weight in order.
constexpr int64_t kLeastRows = 256;

bool is_row_major(const Tensor& flat) { return flat.size(1) == 1 || flat.stride(1) == 1; }

// Whether the kernel is for these: `u` and the result or its gradient as (rows, channels).
bool takes_linear(const Tensor& u, const Tensor& other) {
    const ScalarType type = u.scalar_type();
    return has_fast_linear() && (type == ScalarType::Float || type == ScalarType::Double) && other.scalar_type() == type &&
           u.size(0) >= kLeastRows;
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
    return is_row_major(flat) ? flat : torch::stable::contiguous(flat);
}

// F.linear, its result in huge pages.
Tensor project(const Tensor& u_in, const Tensor& weight, const Optional& bias_in) {
    const Tensor u = as_rows(u_in);
    Tensor z = with_huge_pages(torch::stable::new_empty(u, {u_in.size(0), u_in.size(1), weight.size(0)}));
    Tensor flat = torch::stable::view(z, {u.size(0), weight.size(0)});
    if (takes_linear(u, weight)) {
        Optional bias;
        if (bias_in) bias = torch::stable::contiguous(*bias_in);
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
    const ScalarType type = compute_type(u_in);
    const Tensor dy = as_rows(parameter(dy_in, type)), u = as_rows(parameter(u_in, type));
    Tensor dweight = torch::stable::new_empty(u, {dy.size(1), u.size(1)});
    Tensor dbias = torch::stable::new_empty(u, {dy.size(1)});
    LinearArgs args = linear_args(u, dy);
    args.dweight = dweight.data_ptr();
    args.dbias = dbias.data_ptr();
    kernels().linear_backward(args);
    return {back(dweight, u_in), back(dbias, u_in)};
}

}  // namespace
}  // namespace hyena

// Whether hyena::project and hyena::project_backward have a kernel that is faster than torch's.
extern "C" __attribute__((visibility("default"))) int hyena_fast_linear() { return hyena::has_fast_linear(); }

STABLE_TORCH_LIBRARY_IMPL(hyena, CPU, m) {
    m.impl("short_conv", TORCH_BOX(&hyena::short_conv));
    m.impl("short_conv_backward", TORCH_BOX(&hyena::short_conv_backward));
    m.impl("filter_spectrum", TORCH_BOX(&hyena::filter_spectrum));
    m.impl("filter_spectrum_backward", TORCH_BOX(&hyena::filter_spectrum_backward));
    m.impl("gated_conv", TORCH_BOX(&hyena::gated_conv));
    m.impl("add_conv_", TORCH_BOX(&hyena::add_conv));
    m.impl("gated_conv_backward", TORCH_BOX(&hyena::gated_conv_backward));
    m.impl("direct_conv", TORCH_BOX(&hyena::direct_conv));
    m.impl("direct_conv_backward", TORCH_BOX(&hyena::direct_conv_backward));
    m.impl("mix", TORCH_BOX(&hyena::mix));
    m.impl("project", TORCH_BOX(&hyena::project));
    m.impl("project_backward", TORCH_BOX(&hyena::project_backward));
    m.impl("mix_backward", TORCH_BOX(&hyena::mix_backward));
    m.impl("implicit_filter", TORCH_BOX(&hyena::implicit_filter));
    m.impl("implicit_filter_backward", TORCH_BOX(&hyena::implicit_filter_backward));
}
