// Lists of all programs, for what is instantiated one by one: kernels_*.cu on a GPU, emulated.cpp on the host.
#pragma once

#include "../fft/tables.h"
#include "elementwise.h"
#include "spectrum.h"
#include "toeplitz.h"

#define HYENA_CONVOLVE_PROGRAMS(X) X(Convolve)
#define HYENA_BACKWARD_PROGRAMS(X) X(ConvolveBackward)
#define HYENA_DIRECT_PROGRAMS(X) X(Toeplitz)
#define HYENA_SPLIT_PROGRAMS(X) X(ColumnsIn) X(ColumnsOut) X(RowsConvolve) X(RowsBackward)
#define HYENA_SPECTRUM_PROGRAMS(X) \
    X(Spectrum<false>)             \
    X(Spectrum<true>) X(SpectrumColumns<false>) X(SpectrumColumns<true>) X(SpectrumRows<false>) X(SpectrumRows<true>)
#define HYENA_ELEMENTWISE_PROGRAMS(X) X(Multiply) X(Dot) X(ShortConvBackward) X(Reduce) X(TapGradients) X(FillTable)
