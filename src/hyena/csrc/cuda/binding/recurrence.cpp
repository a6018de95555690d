#include "recurrence.h"

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "../../checks.h"
#include "arrays.h"
#include "fallback.h"

namespace hyena::cuda {
namespace {

// Longest order whose whole recurrence goes through one kernel.
constexpr int64_t kMaxFilters = kMaxGates - 1;

using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The mixing step as steps: value and gates out of z.
struct Recurrence {
    int64_t channels, order, filters;
    const Projections& parts;

    Recurrence(const Projections& p, int64_t z_channels, const Tensor& d)
        : channels(d.size(1)), order(z_channels / std::max<int64_t>(channels, 1) - 1), filters(d.size(0)), parts(p) {}

    // Gate i stands before convolution i, and gate F after the last. None before a value filter.
    int64_t part_of_gate(int64_t i) const { return i == filters ? 0 : filters == order ? order - i : order - 1 - i; }
    bool has_gate(int64_t i) const { return i > 0 || filters < order; }
    Operand gate(int64_t i) const { return has_gate(i) ? parts.from(part_of_gate(i) * channels) : Operand{}; }
    Operand value() const { return parts.from(order * channels); }
};

}  // namespace

Tensor recurrence(const Tensor& z_in, const Tensor& weight, const Optional& bias, const Tensor& spectrum_in,
                  const Tensor& d_in, const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias,
                  bool sectioned) {
    check_recurrence(z_in, weight, bias, spectrum_in, d_in, mask, cu_seqlens, z_bias, sectioned);
    if (is_blocked(z_in))  // the CPU's order
        return to_blocks(recurrence(from_blocks(z_in), weight, bias, spectrum_in, d_in, mask, cu_seqlens, z_bias,
                                    sectioned));
    if (!takes(z_in, size_of(spectrum_in)))
        return fallback<Tensor>("hyena::recurrence_fallback", z_in, weight, bias, spectrum_in, d_in, mask, cu_seqlens,
                                z_bias, sectioned);
    refuse_sections(sectioned);
    const Guard guard(z_in);
    const Tensor z = positions_last(z_in), spectrum = spectrum_memory(spectrum_in), d = parameter(d_in, kCompute);
    const Projections parts(z, weight, bias, z_bias);
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
        Convolve<AnyKind> program;
        program.sequences = input.call.sequences;
        program.transform = transform;
        program.spectra = spectra;
        program.d = floats(d);
        program.channels = channels;
        program.filters = int(filters);
        program.value = recurrence.value();
        for (int64_t i = 0; i <= filters; ++i) program.gates[i] = recurrence.gate(i);
        program.y = array(y);
        convolve(input.call, "recurrence", program);
        return in_order_of(y, z_in);
    }
    Tensor between;
    Operand value = recurrence.value();
    for (int64_t i = 0; i < filters; ++i) {
        const bool last = i + 1 == filters;
        const Tensor to = last ? y : empty(z, channels, kCompute);
        forward(input.call, *prepared,
                {value, recurrence.gate(i), last ? recurrence.gate(filters) : Operand{}, spectra, i,
                 floats(d) + i * channels},
                array(to));
        between = to;  // the one before is not needed any more
        value = operand(between);
    }
    return in_order_of(y, z_in);
}

Six recurrence_backward(const Tensor& dy_in, const Tensor& z_in, const Tensor& weight_in, const Optional& bias,
                        const Tensor& spectrum_in, const Tensor& d_in, const Optional& mask, const Optional& cu_seqlens,
                        const Optional& z_bias, bool sectioned) {
    check_recurrence_backward(dy_in, z_in, weight_in, bias, spectrum_in, d_in, mask, cu_seqlens, z_bias, sectioned);
    if (is_blocked(z_in)) {
        auto [dz, dweight, dbias, dspectrum, dd, dz_bias] =
            recurrence_backward(from_blocks(dy_in), from_blocks(z_in), weight_in, bias, spectrum_in, d_in, mask,
                                cu_seqlens, z_bias, sectioned);
        return {to_blocks(dz), dweight, dbias, dspectrum, dd, dz_bias};
    }
    if (!takes(z_in, size_of(spectrum_in)))
        return fallback<Six>("hyena::recurrence_backward_fallback", dy_in, z_in, weight_in, bias, spectrum_in, d_in,
                             mask, cu_seqlens, z_bias, sectioned);
    refuse_sections(sectioned);
    const Guard guard(z_in);
    const Tensor dy = positions_last(dy_in), z = positions_last(z_in);
    const Tensor spectrum = spectrum_memory(spectrum_in), d = parameter(d_in, kCompute);
    const Projections parts(z, weight_in, bias, z_bias);
    const Recurrence recurrence(parts, z.size(2), d);
    const int64_t channels = recurrence.channels, filters = recurrence.filters, room = spectrum.size(2);
    const Tensor dz = empty(z, z.size(2)), dspectrum = allocate(spectrum, spectrum.sizes());
    const Tensor dweight = allocate(parts.weight, parts.weight.sizes());
    const Tensor dbias = allocate(parts.weight, {z.size(2)}), dd = allocate(d, d.sizes());
    const Tensor dz_bias = allocate(parts.weight, {z_bias ? z.size(2) : 0});
    float* to_z_bias = z_bias ? floats(dz_bias) : nullptr;
    const Input input(z, mask, cu_seqlens, size_of(spectrum), channels);
    const Call& call = input.call;
    Call all = call;  // of all channels of z
    all.channels = z.size(2);
    const auto finish = [&]() -> Six {
        return {in_order_of(dz, z_in),  back(dweight, weight_in),
                back(dbias, weight_in), dspectrum,
                back(dd, d_in),         back(dz_bias, z_bias ? *z_bias : weight_in)};
    };
    const std::shared_ptr<const Prepared> prepared =
        filters == 0 ? nullptr : prepare(size_of(spectrum), channels, spectrum, call.device);
    const Spectra spectra = spectra_of(spectrum, channels);
    Operand upstream = operand(dy);
    upstream.masked = true;  // y is zero where nothing is kept, whatever its gradient is there

    if (filters == 1 && !prepared->plan.split && parts.taps() <= kTapGroup) {
        // One kernel from dy and z to dz.
        const int64_t value = recurrence.order * channels;
        StepGradients to{part(array(dz), value),
                         recurrence.has_gate(0) ? part(array(dz), recurrence.part_of_gate(0) * channels) : Array{},
                         array(dz),
                         floats(dspectrum),
                         floats(dd),
                         {}};
        backward(call, *prepared, {recurrence.value(), recurrence.gate(0), recurrence.gate(1), spectra, 0, floats(d)},
                 upstream, true, to);
        const bool beside = parts.taps() < kTapGroup;  // whether there is a place for the sums of dz (see put_adjoint)
        const std::array<std::pair<int64_t, bool>, 3> places{
            {{0, true}, {recurrence.part_of_gate(0) * channels, recurrence.has_gate(0)}, {value, true}}};
        for (size_t i = 0; i < places.size(); ++i)
            if (const auto [first, has_part] = places[i]; has_part)
                call.run("gradients of taps",
                         TapGradients{channels, kSums, kTapGroup, kTapGroup - 1, parts.taps(),
                                      floats(to.sums) + 1 + int64_t(i) * kPartSums, parts.from(first).z_bias,
                                      floats(dweight) + first * parts.taps(), floats(dbias) + first,
                                      to_z_bias != nullptr && beside ? to_z_bias + first : nullptr},
                         kMaxThreads);
        if (to_z_bias != nullptr && !beside) dot(all, operand(dz), {}, {}, {}, to_z_bias);
        return finish();
    }

    // Step by step, with the parts' gradients in between.
    const Tensor dparts = empty(z, z.size(2), kCompute);
    const Array to_parts = array(dparts);
    if (filters == 0) {
        multiply(call, upstream, recurrence.value(), to_parts);
        multiply(call, upstream, recurrence.gate(0), part(to_parts, channels));
    } else {
        std::vector<Tensor> values;  // after convolutions 0 … F - 2
        const auto value_of = [&](int64_t i) { return i == 0 ? recurrence.value() : operand(values[size_t(i - 1)]); };
        for (int64_t i = 0; i + 1 < filters; ++i) {
            const Tensor to = empty(z, channels, kCompute);
            forward(call, *prepared, {value_of(i), recurrence.gate(i), {}, spectra, i, floats(d) + i * channels},
                    array(to));
            values.push_back(to);
        }
        Tensor before;  // keeps what upstream is
        for (int64_t i = filters - 1; i >= 0; --i) {
            const bool last = i + 1 == filters;
            const Tensor next = i == 0 ? dparts : empty(z, channels, kCompute);
            StepGradients to{i == 0 ? part(to_parts, recurrence.order * channels) : array(next),
                             recurrence.has_gate(i) ? part(to_parts, recurrence.part_of_gate(i) * channels) : Array{},
                             last ? to_parts : Array{},
                             floats(dspectrum) + i * spectra.groups * room * 2,
                             floats(dd) + i * channels,
                             {}};
            backward(call, *prepared,
                     {value_of(i), recurrence.gate(i), last ? recurrence.gate(filters) : Operand{}, spectra, i,
                      floats(d) + i * channels},
                     upstream, false, to);
            before = next;
            upstream = operand(before);
            if (i > 0) values.pop_back();
        }
    }
    short_conv_gradient(all, parts.from(0), operand(dparts), array(dz), floats(dweight), floats(dbias), to_z_bias);
    return finish();
}

}  // namespace hyena::cuda
