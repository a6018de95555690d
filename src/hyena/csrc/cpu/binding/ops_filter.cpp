// Long filters: their taps from the FFN, and the spectra of taps.
#include <array>
#include <utility>

#include "ops.h"

namespace hyena {
namespace {

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

}  // namespace

Tensor filter_spectrum(const Tensor& h_in, int64_t size, bool causal) {
    check_filter_spectrum(h_in, size, causal);
    const Tensor h = parameter(h_in, compute_type(h_in));
    Tensor spectrum = empty_spectrum(h, h.size(0), h.size(2), size);
    if (spectrum.numel() > 0) kernels().spectrum(spectrum_args(h, spectrum, causal));
    return spectrum;
}

Tensor filter_spectrum_backward(const Tensor& ds_in, const Tensor& h_in, int64_t size, bool causal) {
    check_filter_spectrum_backward(ds_in, h_in, size, causal);
    const Tensor ds = dense(ds_in);
    Tensor dh = result(ds, h_in.sizes());
    if (dh.numel() > 0) kernels().spectrum_backward(spectrum_args(dh, ds, causal));
    return back(dh, h_in);
}

namespace {

// The tensors of a filter, in arithmetic precision and contiguous.
struct FilterTensors {
    std::array<Tensor, 8> all;  // features, time, first, inner, biases, freq, out, deltas
    ImplicitFilterArgs args{};

    FilterTensors(std::array<Tensor, 8> given, double shift, int64_t filters) : all(std::move(given)) {
        for (Tensor& t : all) t = dense(t);
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

}  // namespace

Tensor implicit_filter(const Tensor& features, const Tensor& time, const Tensor& first, const Tensor& inner,
                       const Tensor& biases, const Tensor& freq, const Tensor& out, const Tensor& deltas, double shift,
                       int64_t filters) {
    check_implicit_filter(features, time, first, inner, biases, freq, out, deltas, filters);
    FilterTensors f({features, time, first, inner, biases, freq, out, deltas}, shift, filters);
    Tensor h = result(features, {filters, f.args.taps, f.args.channels});
    f.args.h = h.data_ptr();
    kernels().implicit_filter(f.args);
    return h;
}

Eight implicit_filter_backward(const Tensor& dh_in, const Tensor& features, const Tensor& time, const Tensor& first,
                               const Tensor& inner, const Tensor& biases, const Tensor& freq, const Tensor& out,
                               const Tensor& deltas, double shift, bool with_inputs) {
    check_implicit_filter_backward(dh_in, features, time, first, inner, biases, freq, out, deltas);
    FilterTensors f({features, time, first, inner, biases, freq, out, deltas}, shift, dh_in.size(0));
    const Tensor dh = dense(dh_in);
    const auto zeros_of = [&](int i, bool wanted) {
        return wanted ? zeros(f.all[i], f.all[i].sizes()) : zeros(f.all[i], {0});
    };
    Tensor dfeatures = zeros_of(0, with_inputs), dtime = zeros_of(1, with_inputs), dfirst = zeros_of(2, true),
           dinner = zeros_of(3, true);
    Tensor dbiases = zeros_of(4, true), dfreq = zeros_of(5, true), dout = zeros_of(6, true),
           ddeltas = zeros_of(7, with_inputs);
    f.args.dh = dh.const_data_ptr();
    if (with_inputs) {
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

}  // namespace hyena
