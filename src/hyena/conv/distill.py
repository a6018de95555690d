"""Distillation: long filters replaced by modal ones, which step in constant time (arXiv 2310.18780, section 3).

Dimensions: F long filters, G filter channels, K taps, m modes.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from hyena.conv.long import LongConv
from hyena.filters import ModalFilter
from hyena.filters.base import check_sizes
from hyena.filters.modal_fit import SAMPLES, Fit, fit

Module = TypeVar("Module", bound=nn.Module)

# Modes of the default fit. See docs/generation.md for errors against modes.
DEFAULT_MODES = 16


def distill(
    module: Module,
    *,
    modes: int | None = None,
    tolerance: float | None = None,
    progress: bool | Callable[[str], None] = True,
) -> Module:
    """A copy whose long filters are sums of ``modes`` decaying oscillations: approximate, with steps of constant cost.

    Every causal :class:`hyena.conv.LongConv` in ``module`` gets a :class:`hyena.filters.ModalFilter`, and works as
    before: ``forward``, ``prefill``, ``step`` and ``generate``. :func:`distillation_errors` of the copy says how close
    each filter is.

    Args:
        module: a mixer, or a model with mixers in it.
        modes: m of each filter, 16 if neither is given.
        tolerance: instead of ``modes``: the largest relative l2 error of a filter; each convolution gets the least of
            1, 2, 4, 8, … modes that keep to it.
        progress: True prints a line for each fit to standard error; a function is called with the line instead.

    Returns:
        The copy; ``module`` itself is left as it is.

    Raises:
        TypeError: ``modes`` is no integer.
        ValueError: no causal long filters, both ``modes`` and ``tolerance``, one out of range, or a tolerance that no
            number of modes reaches, with the error that is reached.
    """
    if modes is not None and tolerance is not None:
        raise ValueError(f"pass modes={modes} or tolerance={tolerance}, not both")
    if modes is not None:
        check_sizes(modes=modes)
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")
    copied = copy.deepcopy(module)
    found = [(name, m) for name, m in copied.named_modules() if isinstance(m, LongConv) and m.num_filters > 0]
    if not found:
        raise ValueError(f"this {type(module).__name__} has no long filters to distill")
    for name, conv in found:
        why = conv.why_not_online()
        if why is not None:
            raise ValueError(f"{name or type(module).__name__} cannot be stepped, so there is nothing to gain: {why}")
    for i, (name, conv) in enumerate(found):
        _distill(conv, modes, tolerance, _reporter(progress, f"{name or 'filters'} ({i + 1} of {len(found)})"))
    return copied


def _reporter(progress: bool | Callable[[str], None], what: str) -> Callable[[str], None]:
    if progress is False:
        return lambda text: None
    write = progress if callable(progress) else lambda text: print(text, file=sys.stderr, flush=True)
    return lambda text: write(f"distill {what}: {text}")


def distillation_errors(module: nn.Module) -> dict[str, Tensor]:
    """Relative l2 error of each distilled filter, ``(F, G)``, by the name of its convolution in ``module``."""
    return {
        name: m.filter.error.clone()
        for name, m in module.named_modules()
        if isinstance(m, LongConv) and isinstance(m.filter, ModalFilter)
    }


@torch.no_grad()
def _distill(conv: LongConv, modes: int | None, tolerance: float | None, report: Callable[[str], None]) -> None:
    h = conv.matrix_taps(conv.l_max).double()  # (F, K, G)
    h = torch.nn.functional.pad(h, (0, 0, 0, conv.l_max - h.size(1)))
    # So many oscillations are a Fourier basis of as many taps.
    most = h.size(1) // 2 + 1

    def attempt(wanted: int) -> Fit:
        found = fit(h, wanted)
        report(f"{wanted} modes, largest relative error {found.error.max():.2g}")
        return found

    if modes is not None and modes > most:
        raise ValueError(f"modes={modes} are more than filters of l_max={conv.l_max} can have: pass {most} or less")
    if tolerance is None:
        wanted = min(DEFAULT_MODES, most) if modes is None else modes
        fitted = attempt(wanted)
    else:
        wanted, limit = 1, min(most, SAMPLES // 4)
        fitted = attempt(wanted)
        while fitted.error.max() > tolerance and wanted < limit:
            wanted = min(2 * wanted, limit)
            fitted = attempt(wanted)
        if fitted.error.max() > tolerance:
            raise ValueError(
                f"no filter of up to {wanted} modes comes within tolerance={tolerance} of every filter: the largest "
                f"relative error is {fitted.error.max():.2g}"
            )
    modal = ModalFilter(h.size(2), conv.l_max, h.size(0), modes=wanted, device=conv.bias.device, dtype=conv.bias.dtype)
    modal.log_decay.copy_(fitted.decay.log())
    modal.angle.copy_(fitted.angle)
    modal.residue.copy_(torch.view_as_real(fitted.residue))
    modal.first.copy_(fitted.first)
    modal.error.copy_(fitted.error)
    conv.filter = modal.train(conv.training)
    conv.clear_cache()
