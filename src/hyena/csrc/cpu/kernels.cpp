// The table of kernels for one instruction set; compiled once for each.

#include <type_traits>

#include "direct_conv.h"
#include "gated_conv.h"
#include "implicit_filter.h"
#include "linear.h"
#include "recurrence.h"
#include "spectrum.h"

namespace hyena {
namespace {

// Calls f with null pointers whose types are the arithmetic's and the storage's.
template <class F>
void with_types(Storage storage, F&& f) {
    switch (storage) {
        case Storage::kFloat: return f((float*)nullptr, (float*)nullptr);
        case Storage::kDouble: return f((double*)nullptr, (double*)nullptr);
        case Storage::kBFloat16: return f((float*)nullptr, (BFloat16*)nullptr);
        case Storage::kFloat16: return f((float*)nullptr, (Float16*)nullptr);
    }
}

template <class T, class IO>
struct ShortConv {
    static constexpr int W = Simd<T>::W;
    const ShortConvArgs& a;

    int64_t groups() const { return (a.channels + W - 1) / W; }
    Group group(int64_t i) const {
        const int64_t left = a.channels - i * W;
        return {i * W, int(left < W ? left : W)};
    }

    void forward() const {
        const int64_t rows = a.seq.num_rows;
        share(
            a.seq.pool, rows * groups(), [&](int) { return Memory<T>((a.filter.taps + 1) * W); },
            [&](int64_t task, const Memory<T>& taps, Team team) {
                const Row& row = a.seq.rows[task / groups()];
                const Group g = group(task % groups());
                lay_out(a.filter, g, taps.get());
                const Convolved<T, IO> x{Channels<T, IO>(a.z, row, g), Keep(a.seq, row), taps.get(), a.filter.taps};
                const Channels<T, IO> y(a.y, row, g);
                team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                    for (int64_t t = t0; t < t1; ++t) y.put(t, x[t]);
                });
            });
    }

    struct BackwardMemory {
        Memory<T> taps, sums, grad;
        BackwardMemory(const ShortConv& s, int parts)
            : taps((s.a.filter.taps + 1) * W), sums(sums_size(s.a.filter.taps, W) * parts), grad(s.longest() * W) {}
    };
    int64_t longest() const {
        int64_t n = 0;
        for (int64_t r = 0; r < a.seq.num_rows; ++r) n = a.seq.rows[r].length > n ? a.seq.rows[r].length : n;
        return n;
    }

    void backward() const {
        const int64_t each = sums_size(a.filter.taps, W);
        share(
            a.seq.pool, groups(), [&](int parts) { return BackwardMemory(*this, parts); },
            [&](int64_t i, const BackwardMemory& m, Team team) {
                const Group g = group(i);
                lay_out(a.filter, g, m.taps.get());
                std::memset(m.sums.get(), 0, each * team.parts * sizeof(T));
                for (int64_t r = 0; r < a.seq.num_rows; ++r) {
                    const Row& row = a.seq.rows[r];
                    const Keep keep(a.seq, row);
                    const Channels<T, IO> dy(a.dy, row, g);
                    team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                        for (int64_t t = t0; t < t1; ++t) store(m.grad.get() + t * W, keep[t] ? dy[t] : zero<T>());
                    });
                    team.over(row.length, [&](int64_t t0, int64_t t1, int part) {
                        short_conv_backward_span<T, IO>(Channels<T, IO>(a.z, row, g), Channels<T, IO>(a.dz, row, g), keep,
                                                        m.taps.get(), a.filter.taps, m.grad.get(), W, t0, t1,
                                                        m.sums.get() + part * each);
                    });
                }
                for (int part = 0; part < team.parts; ++part)
                    add_sums(m.sums.get() + part * each, a.filter.taps, g, static_cast<T*>(a.dweight),
                             static_cast<T*>(a.dbias));
            });
    }
};

#define HYENA_KERNEL(name, Args, Class, call)                                                       \
    void name(const Args& args) {                                                                   \
        with_types(args.seq.storage, [&](auto* t, auto* io) {                                       \
            Class<std::remove_pointer_t<decltype(t)>, std::remove_pointer_t<decltype(io)>>{args}.call(); \
        });                                                                                         \
    }

HYENA_KERNEL(short_conv, ShortConvArgs, ShortConv, forward)
HYENA_KERNEL(short_conv_backward, ShortConvArgs, ShortConv, backward)
HYENA_KERNEL(gated_conv, GatedConvArgs, GatedConv, forward)
HYENA_KERNEL(gated_conv_backward, GatedConvArgs, GatedConv, backward)
HYENA_KERNEL(direct_conv, DirectConvArgs, DirectConv, forward)
HYENA_KERNEL(direct_conv_backward, DirectConvArgs, DirectConv, backward)
HYENA_KERNEL(recurrence, RecurrenceArgs, Recurrence, forward)
HYENA_KERNEL(recurrence_backward, RecurrenceArgs, Recurrence, backward)

void spectrum(const SpectrumArgs& args) {
    if (args.is_double) return FilterSpectrum<double>(args).forward();
    FilterSpectrum<float>(args).forward();
}

void spectrum_backward(const SpectrumArgs& args) {
    if (args.is_double) return FilterSpectrum<double>(args).backward();
    FilterSpectrum<float>(args).backward();
}

void implicit_filter(const ImplicitFilterArgs& args) {
    if (args.is_double) return ImplicitFilter<double>(args).forward();
    ImplicitFilter<float>(args).forward();
}

void implicit_filter_backward(const ImplicitFilterArgs& args) {
    if (args.is_double) return ImplicitFilter<double>(args).backward();
    ImplicitFilter<float>(args).backward();
}

void linear(const LinearArgs& args) {
    if (args.is_double) return Linear<double>{args}.forward();
    Linear<float>{args}.forward();
}

void linear_backward(const LinearArgs& args) {
    if (args.is_double) return Linear<double>{args}.backward();
    Linear<float>{args}.backward();
}

}  // namespace

#define HYENA_STRING_(x) #x
#define HYENA_STRING(x) HYENA_STRING_(x)
#define HYENA_JOIN_(a, b) a##b
#define HYENA_JOIN(a, b) HYENA_JOIN_(a, b)

const Kernels& HYENA_JOIN(kernels_, HYENA_ISA)() {
    static constexpr Kernels table = {HYENA_STRING(HYENA_ISA),
                                      short_conv,
                                      short_conv_backward,
                                      spectrum,
                                      spectrum_backward,
                                      gated_conv,
                                      gated_conv_backward,
                                      recurrence,
                                      recurrence_backward,
                                      direct_conv,
                                      direct_conv_backward,
                                      implicit_filter,
                                      implicit_filter_backward,
                                      linear,
                                      linear_backward};
    return table;
}

}  // namespace hyena
