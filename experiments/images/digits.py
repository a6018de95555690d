"""Digits as tensors: the first 8,000 of MNIST's test split to train on, the last 2,000 to test on.

Dimensions: N images, L pixels.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).parent
SIDE, TRAINING, TEST = 28, 8000, 2000
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels


def _array(name: str) -> Tensor:
    """A file of the IDX format: a number of dimensions, their sizes in four bytes each, bytes."""
    raw = gzip.decompress((HERE / name).read_bytes())
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * len(sizes) :]), dtype=torch.uint8).view(sizes)


def load(side: int = SIDE, training: int = TRAINING, test: int = TEST) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits to train on and their classes, the digits to test on and theirs: ``(N, 1, H, W)`` and ``(N,)``.

    Pixels have mean 0 and deviation 1 before they are averaged.

    Args:
        side: pixels of a side: 28, or a divisor of it; a smaller image has the means of squares of pixels.
        training: so many of the 8,000.
        test: so many of the 2,000.

    Raises:
        ValueError: another number of pixels or of digits.
    """
    if side < 1 or SIDE % side:
        raise ValueError(f"digits have {SIDE} x {SIDE} pixels, of which {side} x {side} are no means of whole squares")
    if not 1 <= training <= TRAINING or not 1 <= test <= TEST:
        raise ValueError(f"there are {TRAINING} digits to train on and {TEST} to test on, not {training} and {test}")
    images = (_array("t10k-images-idx3-ubyte.gz")[:, None].float() / 255 - MEAN) / DEVIATION
    images, classes = F.avg_pool2d(images, SIDE // side), _array("t10k-labels-idx1-ubyte.gz").long()
    tested = slice(TRAINING, TRAINING + test)
    return images[:training], classes[:training], images[tested], classes[tested]


def permutation(pixels: int) -> Tensor:
    """The one order of the pixels in which permuted digits are read, whatever the seed; ``(L,)``."""
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
