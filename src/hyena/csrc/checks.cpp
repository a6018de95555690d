#include "checks.h"

#include "expect.h"

namespace hyena {
namespace {

// The most points of a transform: indices of its table are 32 bits wide in some places.
constexpr int64_t kMostPoints = int64_t(1) << 30;

// A parameter beside a sequence: rounded to the precision of the arithmetic, never cut to it.
const Types& parameter_of(const Tensor& z) { return z.scalar_type() == ScalarType::Double ? kFloats : kNarrow; }

// A sequence (B, L, C).
void expect_sequence(const char* name, const Tensor& t) { expect(name, t, {kAny, kAny, kAny}, kFloats, t); }

// A sequence in channel blocks (B, C / 16, L, 16).
void expect_blocked(const char* name, const Tensor& t, const Types& types, const Tensor& beside) {
    expect(name, t, {kAny, kAny, kAny, kChannelBlock}, types, beside);
}

// Either of them.
void expect_any_order(const char* name, const Tensor& t) {
    if (is_blocked(t))
        expect_blocked(name, t, kFloats, t);
    else
        expect_sequence(name, t);
}

// Parts of z of so many channels each, all of which must begin where a block does.
void expect_blocks_of(const Tensor& z, int64_t channels) {
    if (is_blocked(z) && channels % kChannelBlock != 0)
        require(false, "z of shape ", shape_of(z.sizes()), " is in blocks of ", kChannelBlock, " channels, but ",
                channels, " channels are not a multiple of that: use (B, L, C)");
}

// A gradient (B, L, channels) of what z, in the same order, became.
void expect_gradient(const Tensor& dy, const Tensor& z, int64_t channels) {
    const Types type = only(z.scalar_type());
    if (is_blocked(z))
        expect("dy", dy, {z.size(0), channels / kChannelBlock, z.size(2), kChannelBlock}, type, z);
    else
        expect("dy", dy, {z.size(0), z.size(1), channels}, type, z);
}

void expect_mask(const Optional& mask, const Tensor& z) { expect("mask", mask, {z.size(0), length_of(z)}, kBool, z); }

// Offsets of packed rows; their values are checked where they are read. On a GPU they may come from the host.
void expect_offsets(const Optional& cu_seqlens, const Tensor& z) {
    if (!cu_seqlens) return;
    expect("cu_seqlens", *cu_seqlens, {kAny}, kOffsets, cu_seqlens->is_cpu() ? *cu_seqlens : z);
    if (cu_seqlens->size(0) < 2) require(false, "cu_seqlens must hold at least 2 offsets, got ", cu_seqlens->size(0));
    if (z.size(0) != 1)
        require(false, "packed rows come as one row of shape (1, T, C), got batch ", z.size(0), " with cu_seqlens");
}

// (channels, taps).
void expect_short_filter(const Tensor& weight, const Tensor& z) {
    expect("weight", weight, {channels_of(z), kAny}, parameter_of(z), z);
    if (weight.size(1) < 1) require(false, "weight must have at least one tap, got shape ", shape_of(weight.sizes()));
}

void expect_size(int64_t size) {
    if (size < 1 || size > kMostPoints)
        require(false, "size, the length of a transform, must be from 1 to ", kMostPoints, ", got ", size);
}

// (…, G, size + 1, 2) for rows of z with so many channels, which share filters evenly; `any_length`: longer rows too.
void expect_spectrum(const char* name, const Tensor& spectrum, std::initializer_list<int64_t> sizes, const Tensor& z,
                     int64_t channels, bool any_length) {
    expect(name, spectrum, sizes, only(compute_type(z)), z);
    const int64_t groups = spectrum.size(spectrum.dim() - 3), size = spectrum.size(spectrum.dim() - 2) - 1;
    if (size < 1 || size > kMostPoints)
        require(false, name, " must be (…, G, size + 1, 2) with a size from 1 to ", kMostPoints, ", got shape ",
                shape_of(spectrum.sizes()));
    if (groups == 0 || channels % groups != 0)
        require(false, name, " of ", groups, " filters does not serve ", channels, " channels: not a multiple");
    if (!any_length && length_of(z) > points_of(size))
        require(false, "a row of ", length_of(z), " positions needs a ", name,
                " of at least that size; this one serves rows of up to ", points_of(size));
}

void expect_gates(const Tensor& v, const Optional& d, const Optional& pre, const Optional& post,
                  const Optional& cu_seqlens) {
    expect("d", d, {v.size(2)}, parameter_of(v), v);
    expect_like("pre", pre, v);
    expect_like("post", post, v);
    expect_offsets(cu_seqlens, v);
}

// Taps (F, K, G), or two-sided (F, 2K - 1, G), that fit a transform.
void expect_taps(const char* name, const Tensor& h, int64_t size, bool causal) {
    expect(name, h, {kAny, kAny, kAny}, kFloats, h);
    expect_size(size);
    if (h.size(1) < 1) require(false, name, " must have at least one tap, got shape ", shape_of(h.sizes()));
    if (!causal && h.size(1) % 2 == 0)
        require(false, name, " is two-sided and must have an odd number of taps, lags -(K - 1) … K - 1, got ",
                h.size(1));
    const int64_t lags = causal ? h.size(1) : (h.size(1) + 1) / 2;
    if (lags > points_of(size))
        require(false, name, " of ", lags, " lags does not fit a transform of ", points_of(size),
                " points, the longest fast length in size ", size);
}

// Taps (K, G), two-sided of an odd number, for so many channels beside a sequence.
void expect_few_taps(const Tensor& h, int64_t channels, bool causal, const Tensor& beside) {
    expect("h", h, {kAny, kAny}, parameter_of(beside), beside);
    if (h.size(0) < 1 || (!causal && h.size(0) % 2 == 0))
        require(false, "h must be (K, G) with at least one tap", causal ? "" : " and, two-sided, an odd number of them",
                ", got shape ", shape_of(h.sizes()));
    if (h.size(1) == 0 || channels % h.size(1) != 0)
        require(false, "h of ", h.size(1), " filters does not serve ", channels, " channels: not a multiple");
}

}  // namespace

void check_short_conv(const Tensor& z, const Tensor& weight, const Optional& bias, const Optional& mask,
                      const Optional& cu_seqlens) {
    expect_sequence("z", z);
    expect_short_filter(weight, z);
    expect("bias", bias, {z.size(2)}, parameter_of(z), z);
    expect_mask(mask, z);
    expect_offsets(cu_seqlens, z);
}

void check_short_conv_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& mask,
                               const Optional& cu_seqlens) {
    check_short_conv(z, weight, std::nullopt, mask, cu_seqlens);
    expect_like("dy", dy, z);
}

void check_filter_spectrum(const Tensor& h, int64_t size, bool causal) { expect_taps("h", h, size, causal); }

void check_filter_spectrum_backward(const Tensor& ds, const Tensor& h, int64_t size, bool causal) {
    expect_taps("h", h, size, causal);
    expect("ds", ds, {h.size(0), h.size(2), size + 1, 2}, only(compute_type(h)), h);
}

void check_gated_conv(const Tensor& v, const Tensor& spectrum, const Optional& d, const Optional& pre,
                      const Optional& post, const Optional& cu_seqlens, bool sectioned) {
    expect_sequence("v", v);
    expect_spectrum("spectrum", spectrum, {kAny, kAny, 2}, v, v.size(2), sectioned || cu_seqlens);
    expect_gates(v, d, pre, post, cu_seqlens);
}

void check_gated_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& spectrum, const Optional& d,
                               const Optional& pre, const Optional& post, const Optional& cu_seqlens,
                               bool sectioned) {
    check_gated_conv(v, spectrum, d, pre, post, cu_seqlens, sectioned);
    expect_like("dy", dy, v);
}

void check_add_conv(const Tensor& y, const Tensor& v, const Tensor& spectrum) {
    expect_sequence("v", v);
    expect_spectrum("spectrum", spectrum, {kAny, kAny, 2}, v, v.size(2), false);
    expect("y", y, {v.size(0), kAny, v.size(2)}, only(v.scalar_type()), v);
    if (y.size(1) > v.size(1))
        require(false, "y of ", y.size(1), " positions is longer than v of ", v.size(1), ": the result has no more");
    expect_one_place("y", y);
}

void check_direct_conv(const Tensor& v, const Tensor& h, const Optional& d, const Optional& pre, const Optional& post,
                       const Optional& cu_seqlens, bool causal) {
    expect_sequence("v", v);
    expect_few_taps(h, v.size(2), causal, v);
    expect_gates(v, d, pre, post, cu_seqlens);
}

void check_direct_conv_backward(const Tensor& dy, const Tensor& v, const Tensor& h, const Optional& d,
                                const Optional& pre, const Optional& post, const Optional& cu_seqlens, bool causal) {
    check_direct_conv(v, h, d, pre, post, cu_seqlens, causal);
    expect_like("dy", dy, v);
}

void check_recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& spectrum,
                      const Tensor& d, const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias,
                      bool sectioned) {
    expect_any_order("z", z);
    expect("d", d, {kAny, kAny}, parameter_of(z), z);
    const int64_t filters = d.size(0), channels = d.size(1), width = channels_of(z),
                  order = channels > 0 ? width / channels - 1 : 0;
    if (order < 1 || width != (order + 1) * channels || (filters != order - 1 && filters != order))
        require(false, "z of ", width, " channels is not (N + 1) C for d of shape (F, C) = ", shape_of(d.sizes()),
                " and an order N with F = N - 1 or N filters");
    expect_blocks_of(z, channels);
    expect_short_filter(weight, z);
    expect("bias", bias, {width}, parameter_of(z), z);
    expect_spectrum("spectrum", spectrum, {filters, kAny, kAny, 2}, z, channels, sectioned || cu_seqlens);
    expect_mask(mask, z);
    expect_offsets(cu_seqlens, z);
    expect("z_bias", z_bias, {width}, parameter_of(z), z);
}

void check_recurrence_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& bias,
                               const Tensor& spectrum, const Tensor& d, const Optional& mask,
                               const Optional& cu_seqlens, const Optional& z_bias, bool sectioned) {
    check_recurrence(z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias, sectioned);
    expect_gradient(dy, z, d.size(1));
}

void check_direct_recurrence(const Tensor& z, const Tensor& weight, const Optional& bias, const Tensor& h,
                             const Tensor& d, const Optional& mask, const Optional& cu_seqlens, const Optional& z_bias,
                             bool causal) {
    expect_any_order("z", z);
    expect("d", d, {kAny}, parameter_of(z), z);
    const int64_t channels = d.size(0), width = channels_of(z);
    if (channels == 0 || (width != 3 * channels && width != 2 * channels))
        require(false, "z of ", width, " channels is not 3 C, two gates and a value, nor 2 C, a gate and a value, ",
                "for d of shape (C,) = ", shape_of(d.sizes()));
    expect_blocks_of(z, channels);
    expect_short_filter(weight, z);
    expect("bias", bias, {width}, parameter_of(z), z);
    expect_few_taps(h, channels, causal, z);
    expect_mask(mask, z);
    expect_offsets(cu_seqlens, z);
    expect("z_bias", z_bias, {width}, parameter_of(z), z);
}

void check_direct_recurrence_backward(const Tensor& dy, const Tensor& z, const Tensor& weight, const Optional& bias,
                                      const Tensor& h, const Tensor& d, const Optional& mask,
                                      const Optional& cu_seqlens, const Optional& z_bias, bool causal) {
    check_direct_recurrence(z, weight, bias, h, d, mask, cu_seqlens, z_bias, causal);
    expect_gradient(dy, z, d.size(0));
}

void check_implicit_filter(const Tensor& features, const Tensor& time, const Tensor& first, const Tensor& inner,
                           const Tensor& biases, const Tensor& freq, const Tensor& out, const Tensor& deltas,
                           int64_t filters) {
    expect("features", features, {kAny, kAny}, kWide, features);
    const Types type = only(features.scalar_type());
    expect("freq", freq, {kAny}, type, features);
    const int64_t width = freq.size(0);
    if (features.size(1) < 1 || width < 1)
        require(false, "features and freq must have at least one entry, got shapes ", shape_of(features.sizes()),
                " and ", shape_of(freq.sizes()));
    expect("time", time, {features.size(0)}, type, features);
    expect("first", first, {width, features.size(1)}, type, features);
    expect("inner", inner, {kAny, width, width}, type, features);
    expect("biases", biases, {1 + inner.size(0), width}, type, features);
    expect("out", out, {kAny, width}, type, features);
    expect("deltas", deltas, {out.size(0)}, type, features);
    if (filters < 1 || out.size(0) % filters != 0)
        require(false, "out has ", out.size(0), " rows, which must be a multiple of filters, and that at least 1; got ",
                filters);
}

void check_implicit_filter_backward(const Tensor& dh, const Tensor& features, const Tensor& time, const Tensor& first,
                                    const Tensor& inner, const Tensor& biases, const Tensor& freq, const Tensor& out,
                                    const Tensor& deltas) {
    expect("features", features, {kAny, kAny}, kWide, features);
    expect("dh", dh, {kAny, features.size(0), kAny}, only(features.scalar_type()), features);
    check_implicit_filter(features, time, first, inner, biases, freq, out, deltas, dh.size(0));
    if (dh.size(0) * dh.size(2) != out.size(0))
        require(false, "dh of shape (F, K, C) = ", shape_of(dh.sizes()), " does not fit out of ", out.size(0),
                " rows, which must be F C");
}

namespace {

void expect_linear(const Tensor& u, const Tensor& weight, const Optional& bias) {
    const Types type = only(u.scalar_type());
    expect("weight", weight, {kAny, channels_of(u)}, type, u);
    expect("bias", bias, {weight.size(0)}, type, u);
}

}  // namespace

void check_project(const Tensor& u, const Tensor& weight, const Optional& bias) {
    expect_sequence("u", u);
    expect_linear(u, weight, bias);
}

void check_project_channel_blocked(const Tensor& u, const Tensor& weight, const Optional& bias) {
    check_project(u, weight, bias);
    if (weight.size(0) % kChannelBlock != 0)
        require(false, "a weight for ", weight.size(0), " channels, which are not a multiple of the ", kChannelBlock,
                " of a block");
}

void check_project_from_channel_blocked(const Tensor& u, const Tensor& weight, const Optional& bias) {
    expect_blocked("u", u, kFloats, u);
    expect_linear(u, weight, bias);
}

void check_project_backward(const Tensor& g, const Tensor& u) {
    expect_any_order("u", u);
    const Types type = only(u.scalar_type());
    if (is_blocked(g))
        expect("g", g, {u.size(0), kAny, length_of(u), kChannelBlock}, type, u);
    else
        expect("g", g, {u.size(0), length_of(u), kAny}, type, u);
}

}  // namespace hyena
