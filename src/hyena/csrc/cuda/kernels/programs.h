// Lists of all programs, for what is instantiated one by one: kernels_*.cu on a GPU, emulated.cpp on the host.
#pragma once

#include "../fft/tables.h"
#include "convolve.h"
#include "convolve_backward.h"
#include "elementwise.h"
#include "spectrum.h"
#include "toeplitz.h"
#include "toeplitz_gradient.h"

#define HYENA_DIRECT_PROGRAMS(X) \
    HYENA_DIRECT_KIND(X, AnyRows) HYENA_DIRECT_KIND(X, PlainRows<BFloat16>) HYENA_DIRECT_KIND(X, PlainRows<Float16>)
#define HYENA_DIRECT_KIND(X, Kind) X(Toeplitz<Kind>) X(ToeplitzGradient<Kind>)
#define HYENA_CONVOLVE_PROGRAMS(X) X(Convolve<AnyKind>)
#define HYENA_BACKWARD_PROGRAMS(X) X(ConvolveBackward<AnyKind>)
// Of what models are trained with: gates as they are, or three taps before each.
#define HYENA_FIXED_PROGRAMS(X, Program, storage) \
    HYENA_FIXED_TAPS(X, Program, storage, 0)      \
    HYENA_FIXED_TAPS(X, Program, storage, 3)
#define HYENA_FIXED_TAPS(X, Program, storage, taps) \
    X(Program<Kind512<storage, taps>>)              \
    X(Program<Kind1K<storage, taps>>)               \
    X(Program<Kind2K<storage, taps>>)               \
    X(Program<Kind4K<storage, taps>>)               \
    X(Program<Kind8K<storage, taps>>)               \
    X(Program<Kind16K<storage, taps>>)
#define HYENA_SPLIT_PROGRAMS(X) X(ColumnsIn) X(ColumnsOut) X(RowsConvolve) X(RowsBackward)
#define HYENA_SPECTRUM_PROGRAMS(X) \
    X(Spectrum<false>)             \
    X(Spectrum<true>) X(SpectrumColumns<false>) X(SpectrumColumns<true>) X(SpectrumRows<false>) X(SpectrumRows<true>)
#define HYENA_ELEMENTWISE_PROGRAMS(X) X(Multiply) X(Dot) X(ShortConvBackward) X(Reduce) X(TapGradients) X(FillTable)
