// The table of kernels for one instruction set; compiled once for each.

#include <type_traits>

#include "channel_bias.h"
#include "direct_conv.h"
#include "direct_recurrence.h"
#include "gated_conv.h"
#include "implicit_filter.h"
#include "linear.h"
#include "recurrence_gradient.h"
#include "short_conv.h"
#include "spectrum.h"
#include "steps.h"

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

#define HYENA_KERNEL(name, Args, Class, call)                                                            \
    void name(const Args& args) {                                                                        \
        with_types(args.seq.storage, [&](auto* t, auto* io) {                                            \
            Class<std::remove_pointer_t<decltype(t)>, std::remove_pointer_t<decltype(io)>>{args}.call(); \
        });                                                                                              \
    }

HYENA_KERNEL(short_conv, ShortConvArgs, ShortConv, forward)
HYENA_KERNEL(short_conv_backward, ShortConvArgs, ShortConv, backward)
HYENA_KERNEL(gated_conv, GatedConvArgs, GatedConv, forward)
HYENA_KERNEL(gated_conv_backward, GatedConvArgs, GatedConv, backward)
HYENA_KERNEL(direct_conv, DirectConvArgs, DirectConv, forward)
HYENA_KERNEL(direct_conv_backward, DirectConvArgs, DirectConv, backward)
HYENA_KERNEL(direct_recurrence, DirectRecurrenceArgs, DirectRecurrence, forward)
HYENA_KERNEL(direct_recurrence_backward, DirectRecurrenceArgs, DirectRecurrence, backward)
HYENA_KERNEL(recurrence, RecurrenceArgs, Recurrence, forward)
HYENA_KERNEL(recurrence_backward, RecurrenceArgs, RecurrenceGradient, backward)

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

void channel_bias(const ChannelBiasArgs& args) {
    with_types(args.storage, [&](auto* t, auto* io) {
        ChannelBias<std::remove_pointer_t<decltype(t)>, std::remove_pointer_t<decltype(io)>>{args}.forward();
    });
}

void channel_bias_backward(const ChannelBiasArgs& args) {
    with_types(args.storage, [&](auto* t, auto* io) {
        ChannelBias<std::remove_pointer_t<decltype(t)>, std::remove_pointer_t<decltype(io)>>{args}.backward();
    });
}

#define HYENA_STEP(name, Args, Class)                             \
    void name(const Args& args) {                                 \
        if (args.is_double) return Class<double>{args}.forward(); \
        Class<float>{args}.forward();                             \
    }

HYENA_STEP(short_step, ShortStepArgs, ShortStep)
HYENA_STEP(modal_step, ModalStepArgs, ModalStep)
HYENA_STEP(window_step, WindowStepArgs, WindowStep)

}  // namespace

#define HYENA_STRING_(x) #x
#define HYENA_STRING(x) HYENA_STRING_(x)
#define HYENA_JOIN_(a, b) a##b
#define HYENA_JOIN(a, b) HYENA_JOIN_(a, b)

const Kernels& HYENA_JOIN(kernels_, HYENA_ISA)() {
    static constexpr Kernels table = {
        HYENA_STRING(HYENA_ISA),
        short_conv,
        short_conv_backward,
        spectrum,
        spectrum_backward,
        gated_conv,
        gated_conv_backward,
        recurrence,
        recurrence_backward,
        direct_recurrence,
        direct_recurrence_backward,
        direct_conv,
        direct_conv_backward,
        implicit_filter,
        implicit_filter_backward,
        linear,
        linear_backward,
        channel_bias,
        channel_bias_backward,
        short_step,
        modal_step,
        window_step,
    };
    return table;
}

}  // namespace hyena
