"""Hyena's operations as functions of tensors: along a sequence, and over grids of up to three axes."""

from hyena.functional.grid import fft_conv_nd, separable_conv_nd
from hyena.functional.sequence import fft_conv, gated_conv, hyena_matrix, short_conv, toeplitz

__all__ = ["fft_conv", "fft_conv_nd", "gated_conv", "hyena_matrix", "separable_conv_nd", "short_conv", "toeplitz"]
