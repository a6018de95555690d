"""Filters for the contract suite: a new one enters by a line in ``CASES``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from helpers.own import own
from hyena import filters
from hyena.filters import (
    DLR,
    DSS,
    EMA,
    S4,
    S4D,
    CKConv,
    ExplicitFilter,
    ExponentialWindow,
    FiLMFilter,
    Filter,
    FourierFilter,
    HyenaFilter,
    LearnedEncoding,
    ModalFilter,
    PairedFilter,
    ShiftSSM,
    TransferFunctionFilter,
)

CHANNELS, L_MAX, FILTERS = 4, 40, 2


def with_tables(channels: int, l_max: int, num_filters: int, *, causal: bool, **at: object) -> HyenaFilter:
    """A filter whose encoding and window are trained."""
    rows = num_filters * (1 if causal else 2)
    return HyenaFilter(
        channels,
        l_max,
        num_filters,
        causal=causal,
        emb_dim=5,
        encoding=LearnedEncoding(5, l_max, **at),
        window=ExponentialWindow(channels, rows, trainable=True, **at),
        **at,
    )


# How each filter is made: called as (channels, l_max, num_filters, causal=, device=, dtype=).
CASES: dict[str, Callable[..., Filter]] = {
    "hyena": HyenaFilter,
    "hyena, another unit of time": partial(HyenaFilter, time_unit=17, shift=0.1, emb_dim=5, width=8),
    "hyena, one hidden layer": partial(HyenaFilter, inner_layers=0, width=8),
    "hyena, tables": with_tables,
    "film": partial(FiLMFilter, condition_dim=3, emb_dim=5, width=8),
    "paired": partial(PairedFilter, emb_dim=5, width=8),
    "explicit": ExplicitFilter,
    "explicit, 7 taps": partial(ExplicitFilter, taps=7),
    "modal": partial(ModalFilter, modes=3),
    "modal, real": partial(ModalFilter, modes=3, real=True),
    "modal, growth": partial(ModalFilter, modes=3, growth=True),
    "s4d": partial(S4D, modes=3),
    "s4d, inv, bilinear": partial(S4D, modes=3, start="inv", discretisation="bilinear"),
    "s4d, real": partial(S4D, modes=3, start="real"),
    "s4d, real, bilinear": partial(S4D, modes=3, start="real", discretisation="bilinear"),
    "shift": partial(ShiftSSM, state=7),
    "ckconv": partial(CKConv, width=8),
    "fourier": partial(FourierFilter, modes=5),
    "fourier, all frequencies": FourierFilter,
    "s4": partial(S4, modes=3),
    "s4, many modes": partial(S4, modes=12),
    "transfer": partial(TransferFunctionFilter, order=5),
    "dss, exp": partial(DSS, modes=3),
    "dss, clip": partial(DSS, modes=3, version="clip", scale=False),
    "dss, softmax": partial(DSS, modes=3, version="softmax"),
    "dss of gss": partial(DSS, modes=3, dt=None, log_frequency=True),
    "dlr": partial(DLR, modes=3),
    "ema": partial(EMA, modes=3),
    "ema, truncated": partial(EMA, modes=3, truncation=9),
    "own power law": own.PowerLaw,
    "own exponential": own.Exponential,
}

# Filters that cannot be used for longer rows than they were made for.
ENDING = {"hyena, tables"}

# Filters of the past alone.
CAUSAL_ONLY = {"modal", "modal, real", "modal, growth"}

SETTINGS = [(name, causal) for name in CASES for causal in (True, False) if causal or name not in CAUSAL_ONLY]


def build(name: str, causal: bool = True, **at: object) -> Filter:
    """The filter of a case."""
    return CASES[name](CHANNELS, L_MAX, FILTERS, causal=causal, **at)


def exported() -> set[type[Filter]]:
    """Every filter that the package exports."""
    kinds = (getattr(filters, name) for name in filters.__all__)
    return {k for k in kinds if isinstance(k, type) and issubclass(k, Filter) and k is not Filter}
