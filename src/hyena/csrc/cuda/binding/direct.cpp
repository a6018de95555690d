#include "direct.h"

#include <algorithm>
#include <optional>

#include "../../checks.h"
#include "../kernels/toeplitz.h"
#include "../kernels/toeplitz_gradient.h"
#include "fallback.h"

namespace hyena::cuda {
namespace {

constexpr int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Clocks of a multiprocessor that a block takes, roughly: to read and write its positions, and to multiply.
double cost_of(const Band& band, int products) {
    const double tiles = double(band.span) / kTile, reach = band.tiles_back() + band.tiles_ahead();
    const double across = (tiles + (band.lead > 0 ? tiles : 0)) / 2;
    const double squares = tiles * (band.before + band.after > 0 ? reach + 0.2 : std::min(reach + 0.2, across));
    return 1000 + 3.0 * band.window() + 4.0 * band.span + 205.0 * products * squares;
}

// The windows that are cheapest for rows of a call; none where shared memory has no room for any.
std::optional<Band> band_for(const Call& call, int64_t filters, int64_t width, int64_t taps, bool causal,
                             int products, bool plain, bool gradient = false) {
    const Sequences& s = call.sequences;
    const int64_t lead = causal ? 0 : taps / 2, last = taps - 1 - lead;
    const int64_t longest = std::max<int64_t>(1, std::min(s.longest, s.length));
    std::optional<Band> best;
    double least = 0;
    // From a tile for every warp on, up to whole rows.
    bool whole = false;
    for (int64_t wide = plain ? ToeplitzArguments::kMaxWarps * kTile : kTile; !whole; wide *= 2) {
        Band band;
        whole = wide >= longest;
        const int64_t span = whole ? up_to(longest, kTile) : wide;
        if (span + up_to(last, kStepDepth) + up_to(lead, kStepDepth) > (1 << 20)) break;
        // Lags beyond the row take no part.
        band.lead = int32_t(lead);
        band.last = int32_t(last);
        band.span = int32_t(span);
        band.before = whole ? 0 : int32_t(up_to(last, kStepDepth));
        band.after = whole ? 0 : int32_t(up_to(lead, kStepDepth));
        const int64_t bytes =
            gradient ? ToeplitzGradientArguments::Memory::bytes(band, products)
                     : ToeplitzArguments::Memory::bytes(band, products, plain);
        if (bytes > call.device.limits.shared || (plain && band.window() > kPlainWindow)) continue;
        const int64_t blocks = Segments(s, filters, width, span).blocks(),
                      together = std::clamp<int64_t>(call.device.limits.shared / bytes, 1, 4);
        // Fewer blocks at once hide less of each other's waiting.
        const double alone = together >= 3 ? 1 : 1 + 0.25 * double(3 - together);
        const double cost = cost_of(band, products) * alone *
                            double(std::max<int64_t>(blocks, together * call.device.limits.multiprocessors));
        if (!best || cost < least) best = band, least = cost;
    }
    return best;
}

int products_of(const Tensor& v) { return v.scalar_type() == ScalarType::Float ? 3 : 1; }

// Whether every chunk of an array is 16 bytes that begin at a multiple of 16, all in the row.
bool is_plain(const Array& a, Storage storage) {
    return a.data == nullptr || (a.storage == storage && reinterpret_cast<uintptr_t>(a.data) % 16 == 0 &&
                                 a.batch_stride % 16 == 0 && a.channel_stride % 16 == 0);
}
bool rows_are_plain(const Call& call, const Tensor& v) {
    const Sequences& s = call.sequences;
    return v.scalar_type() != ScalarType::Float && s.offsets == nullptr && s.length % kChunk == 0 &&
           tuned(Choice::kFixed, 1) != 0;
}

// fn(Kind{}) of plain rows of v's dtype, or of any.
template <class Fn>
void with_kind(bool plain, const Tensor& v, Fn&& fn) {
    if (!plain)
        fn(AnyRows{});
    else if (v.scalar_type() == ScalarType::BFloat16)
        fn(PlainRows<BFloat16>{});
    else
        fn(PlainRows<Float16>{});
}
template <class Program, class Arguments>
Program of_kind(const Arguments& arguments) {
    Program program;
    static_cast<Arguments&>(program) = arguments;
    return program;
}

ToeplitzArguments program_of(const Call& call, const Band& band, int64_t filters, const Tensor& v, const Tensor& h,
                    const Optional& d) {
    ToeplitzArguments program;
    program.segments = Segments(call.sequences, filters, v.size(2) / filters, band.span);
    program.band = band;
    program.products = products_of(v);
    program.h = floats(h);
    program.d = d ? floats(*d) : nullptr;
    return program;
}

void convolve(const Call& call, const char* name, const ToeplitzArguments& program, bool plain, const Tensor& v) {
    const Storage storage = program.value.array.storage;
    for (const Array& a : {program.value.array, program.pre.array, program.factors[0].array, program.factors[1].array,
                           program.outputs[0], program.outputs[1]})
        plain = plain && is_plain(a, storage);
    with_kind(plain, v, [&](auto kind) {
        using Program = Toeplitz<decltype(kind)>;
        const int warps = Program::kOwnThreads > 0 ? Program::kMaxWarps : int(Program::warps(program.band));
        call.run(name, of_kind<Program>(program), warps * kLanes,
                 Program::Memory::bytes(program.band, program.products, plain));
    });
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
    bool plain = rows_are_plain(input.call, v_in);
    const auto find = [&] {
        return band_for(input.call, filters, width, h_in.size(0), causal, products_of(v_in), plain);
    };
    auto band = find();
    if (!band && plain) plain = false, band = find();
    if (!band) return otherwise();
    const Tensor v = positions_last(v_in), y = empty(v, v.size(2));
    if (v.numel() == 0) return in_order_of(y, v_in);
    const Optional pre = positions_last(pre_in), post = positions_last(post_in), d = parameter(d_in, kCompute);
    const Tensor h = dense(torch::stable::transpose(parameter(h_in, kCompute), 0, 1));
    ToeplitzArguments program = program_of(input.call, *band, filters, v, h, d);
    program.value = operand(v);
    program.pre = operand(pre);
    program.factors[0] = operand(post);
    program.outputs[0] = array(y);
    convolve(input.call, "direct convolution", program, plain, v);
    return in_order_of(y, v_in);
}

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five direct_conv_backward(const Tensor& dy_in, const Tensor& v_in, const Tensor& h_in, const Optional& d_in,
                          const Optional& pre_in, const Optional& post_in, const Optional& cu_seqlens, bool causal) {
    check_direct_conv_backward(dy_in, v_in, h_in, d_in, pre_in, post_in, cu_seqlens, causal);
    const auto otherwise = [&] {
        return fallback<Five>("hyena::direct_conv_backward_fallback", dy_in, v_in, h_in, d_in, pre_in, post_in,
                              cu_seqlens, causal);
    };
    if (!takes(v_in) || v_in.numel() == 0) return otherwise();
    const Guard guard(v_in);
    const Input input(v_in, std::nullopt, cu_seqlens, kAnyLength, v_in.size(2));
    const Call& call = input.call;
    const int64_t taps = h_in.size(0), filters = h_in.size(1), channels = v_in.size(2), width = channels / filters;
    const int products = products_of(v_in);
    bool plain = rows_are_plain(call, v_in);
    const auto find = [&](bool gradient) {
        return band_for(call, filters, width, taps, causal, products, plain, gradient);
    };
    auto band = find(false), taps_band = find(true);
    if ((!band || !taps_band) && plain) plain = false, band = find(false), taps_band = find(true);
    if (!band || !taps_band) return otherwise();
    const Tensor dy = positions_last(dy_in), v = positions_last(v_in);
    const Optional pre = positions_last(pre_in), post = positions_last(post_in), d = parameter(d_in, kCompute);
    const Tensor h = dense(torch::stable::transpose(parameter(h_in, kCompute), 0, 1));
    const auto made = [&](bool given) {
        return given ? empty(v, channels) : allocate(v, {v.size(0), v.size(1), 0});
    };
    const Tensor dv = made(true), dpre = made(bool(pre)), dpost = made(bool(post));

    // The input's gradient is the same convolution with time backwards.
    ToeplitzArguments program = program_of(call, *band, filters, v, h, d);
    program.band.reversed = true;
    program.value = operand(dy);
    program.pre = operand(post);
    program.factors[0] = operand(pre);
    program.outputs[0] = array(dv);
    if (pre) {
        program.results = 2;
        program.factors[1] = operand(v);
        program.outputs[1] = array(dpre);
    }
    convolve(call, "direct convolution's gradient", program, plain, v);
    if (post) {
        program = program_of(call, *band, filters, v, h, d);
        program.value = operand(v);
        program.pre = operand(pre);
        program.factors[0] = operand(dy);
        program.outputs[0] = array(dpost);
        convolve(call, "direct convolution's gradient of a gate", program, plain, v);
    }
    ToeplitzGradientArguments gradient{Segments(call.sequences, filters, width, taps_band->span),
                              *taps_band,
                              products,
                              operand(v),
                              operand(pre),
                              operand(dy),
                              operand(post)};
    const int64_t blocks = gradient.segments.blocks_each();
    const Tensor sums = call.scratch(blocks * filters * taps), dh = call.scratch(filters * taps);
    gradient.sums = floats(sums);
    bool aligned = plain;
    for (const Operand& o : {gradient.value, gradient.pre, gradient.dy, gradient.post})
        aligned = aligned && is_plain(o.array, gradient.value.array.storage);
    with_kind(aligned, v, [&](auto kind) {
        using Program = ToeplitzGradient<decltype(kind)>;
        call.run("direct convolution's gradient of taps", of_kind<Program>(gradient), Program::kMaxWarps * kLanes,
                 Program::Memory::bytes(*taps_band, products));
    });
    reduce(call, floats(sums), blocks, filters, 1, taps, taps, floats(dh));
    const Tensor by_tap = torch::stable::transpose(torch::stable::reshape(dh, {filters, taps}), 0, 1);
    Tensor dd = call.scratch(0);
    if (d && plain && width == 1) {  // the gradient of the tap of lag 0 is the same sum
        dd = dense(torch::stable::select(by_tap, 0, causal ? 0 : taps / 2));
    } else if (d) {
        dd = call.scratch(channels);
        dot(call, operand(v), operand(pre), operand(dy), operand(post), floats(dd));
    }
    return {in_order_of(dv, v_in), back(dense(by_tap), h_in), back(dd, d_in), in_order_of(dpre, pre_in),
            in_order_of(dpost, post_in)};
}

}  // namespace hyena::cuda
