"""What is traced alike with and without kernels."""

from __future__ import annotations

import pytest
import torch

from hyena import ops

# The graphs are the same: their ops are not looked into. HyenaOperator, whose layout depends on the kernels, has
# tests of its own (mixers/test_operator_compile.py).
traced_once = pytest.mark.skipif(
    not ops.has_kernel("recurrence", torch.device("cpu")), reason="traced as it is with kernels, where it is tested"
)
