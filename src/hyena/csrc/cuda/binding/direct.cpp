#include "direct.h"

#include <algorithm>
#include <optional>

#include "../../checks.h"
#include "../kernels/toeplitz.h"
#include "fallback.h"

namespace hyena::cuda {
namespace {

constexpr int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Clocks of a multiprocessor that a block takes, roughly: to read and write its positions, and to multiply.
double cost_of(const Band& band, int products) {
    const double tiles = double(band.span) / kTile, reach = band.tiles_back() + band.tiles_ahead();
    const double squares = band.before + band.after > 0 ? tiles * (reach + 0.2)
                                                        : tiles * std::min(reach + 0.2, (tiles + (band.lead > 0 ? tiles : 0)) / 2);
    return 1000 + 3.0 * band.window() + 4.0 * band.span + 205.0 * products * squares;
}

// The windows that are cheapest for rows of a call; none where shared memory has no room for any.
std::optional<Band> band_for(const Call& call, int64_t filters, int64_t width, int64_t taps, bool causal,
                             int products) {
    const Sequences& s = call.sequences;
    const int64_t lead = causal ? 0 : taps / 2, last = taps - 1 - lead;
    const int64_t longest = std::max<int64_t>(1, std::min(s.longest, s.length));
    std::optional<Band> best;
    double least = 0;
    for (int64_t span = kTile; span < 2 * longest || span == kTile; span *= 2) {
        Band band;
        const bool whole = span >= longest;
        if (whole) span = up_to(longest, kTile);
        if (span + up_to(last, kStepDepth) + up_to(lead, kStepDepth) > (1 << 20)) break;
        // Lags beyond the row take no part.
        band.lead = int32_t(lead);
        band.last = int32_t(last);
        band.span = int32_t(span);
        band.before = whole ? 0 : int32_t(up_to(last, kStepDepth));
        band.after = whole ? 0 : int32_t(up_to(lead, kStepDepth));
        const int64_t bytes = Toeplitz::Memory::bytes(band, products);
        if (bytes > call.device.limits.shared) continue;
        const int64_t blocks = Segments(s, filters, width, span).blocks(),
                      together = std::clamp<int64_t>(call.device.limits.shared / bytes, 1, 4);
        const double cost = cost_of(band, products) *
                            double(std::max<int64_t>(blocks, together * call.device.limits.multiprocessors));
        if (!best || cost < least) best = band, least = cost;
    }
    return best;
}

}  // namespace

Tensor direct_conv(const Tensor& v_in, const Tensor& h_in, const Optional& d_in, const Optional& pre_in,
                   const Optional& post_in, const Optional& cu_seqlens, bool causal) {
    check_direct_conv(v_in, h_in, d_in, pre_in, post_in, cu_seqlens, causal);
    const auto otherwise = [&] {
        return fallback<Tensor>("hyena::direct_conv_fallback", v_in, h_in, d_in, pre_in, post_in, cu_seqlens, causal);
    };
    if (!takes(v_in)) return otherwise();
    const Guard guard(v_in);
    const Input input(v_in, std::nullopt, cu_seqlens, kAnyLength, v_in.size(2));
    const int64_t filters = h_in.size(1), width = v_in.size(2) / std::max<int64_t>(filters, 1);
    Toeplitz program;
    program.products = v_in.scalar_type() == ScalarType::Float ? 3 : 1;
    const auto band = band_for(input.call, filters, width, h_in.size(0), causal, program.products);
    if (!band) return otherwise();
    const Tensor v = positions_last(v_in), y = empty(v, v.size(2));
    if (v.numel() == 0) return in_order_of(y, v_in);
    const Optional pre = positions_last(pre_in), post = positions_last(post_in), d = parameter(d_in, kCompute);
    const Tensor h = dense(torch::stable::transpose(parameter(h_in, kCompute), 0, 1));
    program.segments = Segments(input.call.sequences, filters, width, band->span);
    program.band = *band;
    program.h = floats(h);
    program.d = d ? floats(*d) : nullptr;
    program.value = operand(v);
    program.pre = operand(pre);
    program.factors[0] = operand(post);
    program.outputs[0] = array(y);
    input.call.run("direct convolution", program, int(Toeplitz::warps(*band)) * kLanes,
                   Toeplitz::Memory::bytes(*band, program.products));
    return in_order_of(y, v_in);
}

}  // namespace hyena::cuda
