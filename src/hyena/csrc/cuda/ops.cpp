// Registers the CUDA kernels under the ops that Python defines. Stable ABI: this file serves every torch from 2.11 on.
//
// Arrays are (B, C, L) in memory here, the natural order of a GPU: what comes otherwise is copied, and goes back as it came.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>

#include "steps.h"

namespace hyena::cuda {
namespace {

// Longest order whose whole recurrence goes through one kernel.
constexpr int64_t kMaxFilters = kMaxGates - 1;

// ---- what the kernels take, and what they hand to the fallback ----------------------------------------------------------

bool takes(ScalarType type, int device) {
    return (type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half) && supported(device);
}
bool takes(const Tensor& t) { return takes(t.scalar_type(), std::max(0, int(t.get_device_index()))); }

template <class Result, size_t... I>
Result results(StableIValue* stack, std::index_sequence<I...>) {
    return {torch::stable::detail::to<Tensor>(stack[I])...};
}

// hyena::<name>_fallback, which Python registers beside hyena::<name>.
template <class Result, class... Args>
Result fallback(const char* name, const Args&... args) {
    constexpr size_t kResults = [] {
        if constexpr (std::is_same_v<Result, Tensor>)
            return size_t(1);
        else
            return std::tuple_size_v<Result>;
    }();
    std::array<StableIValue, std::max(sizeof...(Args), kResults)> stack{torch::stable::detail::from(args)...};
    call_op(name, "", stack.data());
    if constexpr (std::is_same_v<Result, Tensor>)
        return torch::stable::detail::to<Tensor>(stack[0]);
    else
        return results<Result>(stack.data(), std::make_index_sequence<kResults>{});
}

// ---- tensors as arrays --------------------------------------------------------------------------------------------------

#if defined(HYENA_EMULATE_CUDA)
struct Guard {
    explicit Guard(const Tensor&) {}
    ~Guard() {}
};
#else
struct Guard {
    torch::stable::accelerator::DeviceGuard guard;
    explicit Guard(const Tensor& t) : guard(t.get_device_index()) {}
};
#endif

Storage storage_of(const Tensor& t) {
    switch (t.scalar_type()) {
        case ScalarType::BFloat16: return Storage::kBFloat16;
        case ScalarType::Half: return Storage::kFloat16;
        case ScalarType::Float: return Storage::kFloat;
        default: STD_TORCH_CHECK(false, "hyena: expected float32, bfloat16 or float16 beside an input of one of them");
    }
}

// (B, L, C) with contiguous positions.
Tensor positions_last(const Tensor& t) {
    if (t.size(1) == 1 || t.stride(1) == 1) return t;
    return torch::stable::transpose(torch::stable::contiguous(torch::stable::transpose(t, 1, 2)), 1, 2);
}
Optional positions_last(const Optional& t) {
    if (!t) return t;
    return positions_last(*t);
}

Array array(const Tensor& t) { return {t.data_ptr(), storage_of(t), t.stride(0), t.stride(2)}; }
Operand operand(const Tensor& t) { return {array(t), nullptr, nullptr, 0}; }
Operand operand(const Optional& t) { return t ? operand(*t) : Operand{}; }

// Uninitialised (B, L, channels), positions contiguous.
Tensor empty(const Tensor& like, int64_t channels, std::optional<ScalarType> type = std::nullopt) {
    return torch::stable::transpose(torch::stable::new_empty(like, {like.size(0), channels, like.size(1)}, type), 1, 2);
}

// `y`, positions contiguous, in the memory order of `z`.
Tensor in_order_of(const Tensor& y, const Tensor& z) { return is_channel_major(z) ? y : torch::stable::contiguous(y); }

constexpr ScalarType kCompute = ScalarType::Float;

// A spectrum, contiguous, where complex numbers can be read.
Tensor spectrum_memory(const Tensor& t) {
    const Tensor dense = parameter(t, kCompute);
    return reinterpret_cast<uintptr_t>(dense.data_ptr()) % alignof(Cx) == 0 ? dense : torch::stable::clone(dense);
}

// Channels first … of an array.
Array part(Array a, int64_t first) {
    a.data = static_cast<char*>(a.data) + first * a.channel_stride * bytes_of(a.storage);
    return a;
}

// The parameters of a short convolution and z, whose parts they make operands of.
struct Parts {
    Tensor weight;
    Optional bias;
    Array z;

    Parts(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in) : weight(parameter(weight_in, kCompute)), z(array(z_in)) {
        if (bias_in) bias = parameter(*bias_in, kCompute);
    }
    int64_t taps() const { return weight.size(1); }
    // From channel `first` on.
    Operand from(int64_t first) const {
        return {part(z, first), floats(weight) + first * taps(), bias ? floats(*bias) + first : nullptr, int32_t(taps())};
    }
};

// A call's sequences; holds the tensors that they point into.
struct Input {
    Tensor mask, offsets;
    Call call;

    Input(const Tensor& z, const Optional& given, const Optional& cu_seqlens, int64_t longest, int64_t channels) {
        Sequences s;
        s.count = z.size(0);
        s.length = s.longest = z.size(1);
        STD_TORCH_CHECK(s.length <= INT32_MAX / 2, "hyena: rows of ", s.length, " positions are longer than kernels take, ", INT32_MAX / 2);
        if (cu_seqlens) {
            STD_TORCH_CHECK(s.count == 1 && cu_seqlens->size(0) >= 2,
                            "hyena: packed rows come as one row with at least 2 offsets, got batch ", s.count, " and ",
                            cu_seqlens->size(0), " offsets");
            offsets = torch::stable::contiguous(torch::stable::to(*cu_seqlens, z.device()));
            offsets = parameter(offsets, ScalarType::Long);
            s.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
            s.count = offsets.size(0) - 1;
            s.longest = std::min(s.longest, longest);
        } else {
            STD_TORCH_CHECK(s.length <= longest, "hyena: a row of ", s.length, " positions needs a spectrum of that size, not ", longest);
        }
        if (given) {
            mask = torch::stable::contiguous(*given);
            s.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
        }
        call = {device_of(z), z, s, channels};
    }
};

Spectra spectra_of(const Tensor& t, int64_t channels) {
    const int64_t groups = t.size(t.dim() - 3);
    return {static_cast<Cx*>(t.data_ptr()), groups, t.size(t.dim() - 2), channels / std::max<int64_t>(groups, 1)};
}

int64_t size_of(const Tensor& spectrum) { return points_of(spectrum.size(spectrum.dim() - 2) - 1); }

// ---- ops ----------------------------------------------------------------------------------------------------------------

constexpr int64_t kAnyLength = int64_t(1) << 62;

Tensor short_conv(const Tensor& z_in, const Tensor& weight, const Optional& bias, const Optional& mask, const Optional& cu_seqlens) {
    if (!takes(z_in)) return fallback<Tensor>("hyena::short_conv_fallback", z_in, weight, bias, mask, cu_seqlens);
    const Guard guard(z_in);
    const Tensor z = positions_last(z_in), y = empty(z, z.size(2));
    const Parts parts(z, weight, bias);
    const Input input(z, mask, cu_seqlens, kAnyLength, z.size(2));
    multiply(input.call, parts.from(0), {}, array(y));
    return in_order_of(y, z_in);
}

std::tuple<Tensor, Tensor, Tensor> short_conv_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight,
                                                       const Optional& mask, const Optional& cu_seqlens) {
    if (!takes(z_in))
        return fallback<std::tuple<Tensor, Tensor, Tensor>>("hyena::short_conv_backward_fallback", dy_in, z_in, weight, mask, cu_seqlens);
    const Guard guard(z_in);
    const Tensor z = positions_last(z_in), dy = positions_last(dy_in), dz = empty(z, z.size(2));
    const Parts parts(z, weight, std::nullopt);
    const Tensor dweight = torch::stable::new_empty(parts.weight, parts.weight.sizes());
    const Tensor dbias = torch::stable::new_empty(parts.weight, {z.size(2)});
    const Input input(z, mask, cu_seqlens, kAnyLength, z.size(2));
    short_conv_gradient(input.call, parts.from(0), operand(dy), array(dz), floats(dweight), floats(dbias));
    return {in_order_of(dz, z_in), back(dweight, weight), back(dbias, weight)};
}

Tensor filter_spectrum(const Tensor& h_in, int64_t size, bool causal) {
    if (!takes(h_in)) return fallback<Tensor>("hyena::filter_spectrum_fallback", h_in, size, causal);
    const Guard guard(h_in);
    const int64_t filters = h_in.size(0) * h_in.size(2), points = points_of(size), lags = causal ? h_in.size(1) : (h_in.size(1) + 1) / 2;
    STD_TORCH_CHECK(lags <= points, "hyena: a filter of ", lags, " lags does not fit a transform of ", points);
    const Tensor h = torch::stable::contiguous(torch::stable::transpose(parameter(h_in, kCompute), 1, 2));
    const Tensor spectrum = torch::stable::new_empty(h, {h_in.size(0), h_in.size(2), size + 1, 2});
    if (filters == 0) return spectrum;
    const Device device = device_of(h);
    const auto prepared = prepare(points, filters, h, device);
    const Plan& plan = prepared->plan;
    const Call call{device, h, {}, filters};
    const Taps taps{floats(h), lags, points, causal};
    Cx* to = static_cast<Cx*>(spectrum.data_ptr());
    if (!plan.split) {
        call.run("spectrum", Spectrum<false>{plan.whole, filters, size + 1, taps, to}, threads_for(plan.whole.size()),
                 shared_bytes(plan.whole.size()));
        return spectrum;
    }
    const Rounds rounds(call, 1, points * int64_t(sizeof(Cx)));
    const Tensor memory = call.scratch(rounds.pairs() * points * 2);
    Cx* scratch = static_cast<Cx*>(memory.data_ptr());
    rounds.each([&](const Pairs& pairs) {
        run_columns(call, "columns of the filter", SpectrumColumns<false>{columns_of(plan, pairs, scratch), taps}, plan);
        run_rows(call, "rows of the filter", SpectrumRows<false>{rows_of(plan), pairs, size + 1, scratch, to}, plan);
    });
    return spectrum;
}

Tensor filter_spectrum_backward(const Tensor& ds_in, const Tensor& h, int64_t size, bool causal) {
    if (!takes(h)) return fallback<Tensor>("hyena::filter_spectrum_backward_fallback", ds_in, h, size, causal);
    const Guard guard(h);
    const int64_t filters = h.size(0) * h.size(2), points = points_of(size), lags = causal ? h.size(1) : (h.size(1) + 1) / 2;
    const Tensor ds = spectrum_memory(ds_in), dh = torch::stable::new_empty(ds, {h.size(0), h.size(2), h.size(1)});
    if (filters > 0 && lags > 0) {
        const Device device = device_of(h);
        const auto prepared = prepare(points, filters, ds, device);
        const Plan& plan = prepared->plan;
        const Call call{device, ds, {}, filters};
        const Taps taps{floats(dh), lags, points, causal};
        Cx* from = static_cast<Cx*>(ds.data_ptr());
        if (!plan.split) {
            call.run("spectrum's gradient", Spectrum<true>{plan.whole, filters, size + 1, taps, from}, threads_for(plan.whole.size()),
                     shared_bytes(plan.whole.size()));
        } else {
            const Rounds rounds(call, 1, points * int64_t(sizeof(Cx)));
            const Tensor memory = call.scratch(rounds.pairs() * points * 2);
            Cx* scratch = static_cast<Cx*>(memory.data_ptr());
            rounds.each([&](const Pairs& pairs) {
                run_rows(call, "rows of the filter's gradient", SpectrumRows<true>{rows_of(plan), pairs, size + 1, scratch, from}, plan);
                run_columns(call, "columns of the filter's gradient", SpectrumColumns<true>{columns_of(plan, pairs, scratch), taps}, plan);
            });
        }
    }
    return back(torch::stable::contiguous(torch::stable::transpose(dh, 1, 2)), h);
}

Tensor gated_conv(const Tensor& v_in, const Tensor& spectrum_in, const Optional& d_in, const Optional& pre_in, const Optional& post_in,
                  const Optional& cu_seqlens) {
    if (!takes(v_in)) return fallback<Tensor>("hyena::gated_conv_fallback", v_in, spectrum_in, d_in, pre_in, post_in, cu_seqlens);
    const Guard guard(v_in);
    const Tensor v = positions_last(v_in), spectrum = spectrum_memory(spectrum_in), y = empty(v, v.size(2));
    const Optional pre = positions_last(pre_in), post = positions_last(post_in);
    Optional d;
    if (d_in) d = parameter(*d_in, kCompute);
    const Input input(v, std::nullopt, cu_seqlens, size_of(spectrum), v.size(2));
    const auto prepared = prepare(size_of(spectrum), v.size(2), spectrum, input.call.device);
    forward(input.call, *prepared,
            {operand(v), operand(pre), operand(post), spectra_of(spectrum, v.size(2)), 0, d ? floats(*d) : nullptr}, array(y));
    return in_order_of(y, v_in);
}

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five gated_conv_backward(const Tensor& dy_in, const Tensor& v_in, const Tensor& spectrum_in, const Optional& d_in, const Optional& pre_in,
                         const Optional& post_in, const Optional& cu_seqlens) {
    if (!takes(v_in))
        return fallback<Five>("hyena::gated_conv_backward_fallback", dy_in, v_in, spectrum_in, d_in, pre_in, post_in, cu_seqlens);
    const Guard guard(v_in);
    const Tensor dy = positions_last(dy_in), v = positions_last(v_in), spectrum = spectrum_memory(spectrum_in);
    const Optional pre = positions_last(pre_in), post = positions_last(post_in);
    Optional d;
    if (d_in) d = parameter(*d_in, kCompute);
    const int64_t channels = v.size(2);
    const Tensor dv = empty(v, channels), none = torch::stable::new_empty(v, {v.size(0), v.size(1), 0});
    const Tensor dpre = pre ? empty(v, channels) : none;
    const Tensor dpost = post ? empty(v, channels) : torch::stable::new_empty(v, {v.size(0), v.size(1), 0});
    const Tensor dspectrum = torch::stable::new_empty(spectrum, spectrum.sizes());
    const Tensor dd = torch::stable::new_empty(spectrum, {d ? channels : 0});
    const Input input(v, std::nullopt, cu_seqlens, size_of(spectrum), channels);
    const auto prepared = prepare(size_of(spectrum), channels, spectrum, input.call.device);
    StepGradients to{array(dv), pre ? array(dpre) : Array{}, post ? array(dpost) : Array{}, floats(dspectrum), d ? floats(dd) : nullptr, {}};
    backward(input.call, *prepared,
             {operand(v), operand(pre), operand(post), spectra_of(spectrum, channels), 0, d ? floats(*d) : nullptr}, operand(dy), false, to);
    return {in_order_of(dv, v_in), pre ? in_order_of(dpre, *pre_in) : dpre, post ? in_order_of(dpost, *post_in) : dpost, dspectrum,
            d ? back(dd, *d_in) : dd};
}

// The mixing step as steps: value and gates out of z.
struct Recurrence {
    int64_t channels, order, filters;
    const Parts& parts;

    Recurrence(const Parts& p, int64_t z_channels, const Tensor& d)
        : channels(d.size(1)), order(z_channels / std::max<int64_t>(channels, 1) - 1), filters(d.size(0)), parts(p) {}

    // Gate i stands before convolution i, and gate F after the last. None before a value filter.
    int64_t part_of_gate(int64_t i) const { return i == filters ? 0 : filters == order ? order - i : order - 1 - i; }
    bool has_gate(int64_t i) const { return i > 0 || filters < order; }
    Operand gate(int64_t i) const { return has_gate(i) ? parts.from(part_of_gate(i) * channels) : Operand{}; }
    Operand value() const { return parts.from(order * channels); }
};

Tensor mix(const Tensor& z_in, const Tensor& weight, const Optional& bias, const Tensor& spectrum_in, const Tensor& d_in,
           const Optional& mask, const Optional& cu_seqlens) {
    if (!takes(z_in)) return fallback<Tensor>("hyena::mix_fallback", z_in, weight, bias, spectrum_in, d_in, mask, cu_seqlens);
    const Guard guard(z_in);
    const Tensor z = positions_last(z_in), spectrum = spectrum_memory(spectrum_in), d = parameter(d_in, kCompute);
    const Parts parts(z, weight, bias);
    const Recurrence recurrence(parts, z.size(2), d);
    const int64_t channels = recurrence.channels, filters = recurrence.filters;
    const Tensor y = empty(z, channels);
    const Input input(z, mask, cu_seqlens, size_of(spectrum), channels);
    if (filters == 0) {
        multiply(input.call, recurrence.value(), recurrence.gate(0), array(y));
        return in_order_of(y, z_in);
    }
    const auto prepared = prepare(size_of(spectrum), channels, spectrum, input.call.device);
    const Spectra spectra = spectra_of(spectrum, channels);
    if (!prepared->plan.split && filters <= kMaxFilters) {
        const Transform& transform = prepared->plan.whole;
        Convolve program;
        program.sequences = input.call.sequences;
        program.transform = transform;
        program.spectra = spectra;
        program.d = floats(d);
        program.channels = channels;
        program.filters = int(filters);
        program.value = recurrence.value();
        for (int64_t i = 0; i <= filters; ++i) program.gates[i] = recurrence.gate(i);
        program.y = array(y);
        input.call.run("mixing step", program, threads_for(transform.size()), shared_bytes(transform.size()));
        return in_order_of(y, z_in);
    }
    Tensor between;
    Operand value = recurrence.value();
    for (int64_t i = 0; i < filters; ++i) {
        const bool last = i + 1 == filters;
        const Tensor to = last ? y : empty(z, channels, kCompute);
        forward(input.call, *prepared,
                {value, recurrence.gate(i), last ? recurrence.gate(filters) : Operand{}, spectra, i, floats(d) + i * channels}, array(to));
        between = to;  // the one before is not needed any more
        value = operand(between);
    }
    return in_order_of(y, z_in);
}

Five mix_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight_in, const Optional& bias, const Tensor& spectrum_in,
                  const Tensor& d_in, const Optional& mask, const Optional& cu_seqlens) {
    if (!takes(z_in))
        return fallback<Five>("hyena::mix_backward_fallback", dy_in, z_in, weight_in, bias, spectrum_in, d_in, mask, cu_seqlens);
    const Guard guard(z_in);
    const Tensor dy = positions_last(dy_in), z = positions_last(z_in);
    const Tensor spectrum = spectrum_memory(spectrum_in), d = parameter(d_in, kCompute);
    const Parts parts(z, weight_in, bias);
    const Recurrence recurrence(parts, z.size(2), d);
    const int64_t channels = recurrence.channels, filters = recurrence.filters, room = spectrum.size(2);
    const Tensor dz = empty(z, z.size(2)), dspectrum = torch::stable::new_empty(spectrum, spectrum.sizes());
    const Tensor dweight = torch::stable::new_empty(parts.weight, parts.weight.sizes());
    const Tensor dbias = torch::stable::new_empty(parts.weight, {z.size(2)}), dd = torch::stable::new_empty(d, d.sizes());
    const Input input(z, mask, cu_seqlens, size_of(spectrum), channels);
    const Call& call = input.call;
    const auto finish = [&]() -> Five {
        return {in_order_of(dz, z_in), back(dweight, weight_in), back(dbias, weight_in), dspectrum, back(dd, d_in)};
    };
    const std::shared_ptr<const Prepared> prepared = filters == 0 ? nullptr : prepare(size_of(spectrum), channels, spectrum, call.device);
    const Spectra spectra = spectra_of(spectrum, channels);

    if (filters == 1 && !prepared->plan.split && parts.taps() <= kTapGroup) {
        // One kernel from dy and z to dz.
        const int64_t value = recurrence.order * channels;
        StepGradients to{part(array(dz), value), recurrence.has_gate(0) ? part(array(dz), recurrence.part_of_gate(0) * channels) : Array{},
                         array(dz), floats(dspectrum), floats(dd), {}};
        backward(call, *prepared, {recurrence.value(), recurrence.gate(0), recurrence.gate(1), spectra, 0, floats(d)}, operand(dy), true, to);
        const std::array<std::pair<int64_t, bool>, 3> places{
            {{0, true}, {recurrence.part_of_gate(0) * channels, recurrence.has_gate(0)}, {value, true}}};
        for (size_t i = 0; i < places.size(); ++i)
            if (const auto [first, there] = places[i]; there)
                call.run("gradients of taps",
                         TapGradients{channels, kSums, kTapGroup, parts.taps(), floats(to.sums) + 1 + int64_t(i) * kPartSums,
                                      floats(dweight) + first * parts.taps(), floats(dbias) + first},
                         kMaxThreads);
        return finish();
    }

    // Step by step, with the parts' gradients in between.
    const Tensor dparts = empty(z, z.size(2), kCompute);
    const Array to_parts = array(dparts);
    if (filters == 0) {
        multiply(call, operand(dy), recurrence.value(), to_parts);
        multiply(call, operand(dy), recurrence.gate(0), part(to_parts, channels));
    } else {
        std::vector<Tensor> values;  // after convolutions 0 … F - 2
        const auto value_of = [&](int64_t i) { return i == 0 ? recurrence.value() : operand(values[size_t(i - 1)]); };
        for (int64_t i = 0; i + 1 < filters; ++i) {
            const Tensor to = empty(z, channels, kCompute);
            forward(call, *prepared, {value_of(i), recurrence.gate(i), {}, spectra, i, floats(d) + i * channels}, array(to));
            values.push_back(to);
        }
        Tensor upstream = dy;
        for (int64_t i = filters - 1; i >= 0; --i) {
            const bool last = i + 1 == filters;
            const Tensor before = i == 0 ? dparts : empty(z, channels, kCompute);
            StepGradients to{i == 0 ? part(to_parts, recurrence.order * channels) : array(before),
                             recurrence.has_gate(i) ? part(to_parts, recurrence.part_of_gate(i) * channels) : Array{},
                             last ? to_parts : Array{},
                             floats(dspectrum) + i * spectra.groups * room * 2,
                             floats(dd) + i * channels,
                             {}};
            backward(call, *prepared,
                     {value_of(i), recurrence.gate(i), last ? recurrence.gate(filters) : Operand{}, spectra, i, floats(d) + i * channels},
                     operand(upstream), false, to);
            upstream = before;
            if (i > 0) values.pop_back();
        }
    }
    Call all = call;
    all.channels = z.size(2);
    short_conv_gradient(all, parts.from(0), operand(dparts), array(dz), floats(dweight), floats(dbias));
    return finish();
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
    m.impl("mix", TORCH_BOX(&hyena::cuda::mix));
    m.impl("mix_backward", TORCH_BOX(&hyena::cuda::mix_backward));
}

// For Python: whether kernels, rather than fallbacks, run for a dtype on a device. Not where there is no such device.
extern "C" __attribute__((visibility("default"))) int hyena_cuda_takes(int device, int is_double) noexcept {
    try {
        return !is_double && hyena::cuda::supported(device);
    } catch (...) {
        return 0;
    }
}
