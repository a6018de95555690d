// Lists of all programs, for what is instantiated one by one: kernels_*.cu on a GPU, emulated.cpp on the host.
#pragma once

#include "../fft/tables.h"
#include "convolve.h"
#include "convolve_backward.h"
#include "elementwise.h"
#include "spectrum.h"
#include "toeplitz.h"

#define HYENA_DIRECT_PROGRAMS(X) X(Toeplitz)
#define HYENA_CONVOLVE_PROGRAMS(X) X(Convolve<AnyKind>)
#define HYENA_BACKWARD_PROGRAMS(X) X(ConvolveBackward<AnyKind>)
// Of the dtype that models are trained in.
#define HYENA_FIXED_PROGRAMS(X, Program)   \
    X(Program<Kind1K<Storage::kBFloat16>>) \
    X(Program<Kind2K<Storage::kBFloat16>>) \
    X(Program<Kind4K<Storage::kBFloat16>>) \
    X(Program<Kind8K<Storage::kBFloat16>>) \
    X(Program<Kind16K<Storage::kBFloat16>>)
#define HYENA_SPLIT_PROGRAMS(X) X(ColumnsIn) X(ColumnsOut) X(RowsConvolve) X(RowsBackward)
#define HYENA_SPECTRUM_PROGRAMS(X) \
    X(Spectrum<false>)             \
    X(Spectrum<true>) X(SpectrumColumns<false>) X(SpectrumColumns<true>) X(SpectrumRows<false>) X(SpectrumRows<true>)
#define HYENA_ELEMENTWISE_PROGRAMS(X) X(Multiply) X(Dot) X(ShortConvBackward) X(Reduce) X(TapGradients) X(FillTable)
