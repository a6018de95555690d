"""What the contract of mixers is run over: one line for each, and more where a mixer has different ways inside.

A mixer that is exported by ``hyena.mixers`` and has no case here fails the suite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from helpers.own import own
from hyena.filters import (
    S4,
    S4D,
    S4ND,
    ExplicitFilter,
    HyenaFilter,
    HyenaFilterND,
    ModalFilter,
    PairedFilter,
    ShiftSSM,
)
from hyena.mixers import (
    AFT,
    GSS,
    H3,
    S5,
    AFTConv,
    Attention,
    BigBird,
    BlockRecurrent,
    HyenaND,
    HyenaOperator,
    HyenaPatches,
    LinearAttention,
    Mega,
    Mixer,
    MixerND,
    MonarchMixer,
)

D, L_MAX = 8, 48

CASES: dict[str, Callable[..., Mixer]] = {
    "HyenaOperator": partial(HyenaOperator, D, L_MAX),
    "HyenaOperator-order-3": partial(HyenaOperator, D, L_MAX, order=3),
    "HyenaOperator-heads": partial(HyenaOperator, D, L_MAX, num_heads=2),
    "HyenaOperator-two-sided": partial(HyenaOperator, D, L_MAX, causal=False),
    "HyenaOperator-explicit": partial(HyenaOperator, D, L_MAX, filter=partial(ExplicitFilter, taps=5)),
    "HyenaOperator-s4d": partial(HyenaOperator, D, L_MAX, filter=partial(S4D, modes=3)),
    "HyenaOperator-s4": partial(HyenaOperator, D, L_MAX, filter=partial(S4, modes=3)),
    "HyenaOperator-biases": partial(HyenaOperator, D, L_MAX, bias=False, short_bias=False, out_bias=True),
    "HyenaOperator-modal": partial(HyenaOperator, D, L_MAX, filter=partial(ModalFilter, modes=3)),
    "HyenaPatches": partial(HyenaPatches, D, L_MAX, grid=(7, 7)),
    "HyenaPatches-tokens": partial(HyenaPatches, D, L_MAX, grid=(10, 5), prefix_tokens=3, order=3),
    "HyenaPatches-circular": partial(
        HyenaPatches, D, L_MAX, grid=(6, 8), prefix_tokens=0, boundary=("zero", "circular")
    ),
    "Attention": partial(Attention, D, L_MAX, num_heads=2),
    "Attention-rotary": partial(Attention, D, L_MAX, num_heads=2, num_kv_heads=1, rotary_base=100.0, out_bias=False),
    "Attention-two-sided": partial(Attention, D, L_MAX, num_heads=2, causal=False),
    "AFT": partial(AFT, D, L_MAX, rank=3),
    "AFT-two-sided": partial(AFT, D, L_MAX, rank=3, causal=False),
    "AFTConv": partial(AFTConv, D, L_MAX, window=5, num_heads=2),
    "AFTConv-two-sided": partial(AFTConv, D, L_MAX, window=5, num_heads=2, causal=False),
    "LinearAttention": partial(LinearAttention, D, L_MAX, num_heads=2, chunk=8),
    "LinearAttention-taylor": partial(LinearAttention, D, L_MAX, feature_map="taylor", chunk=5),
    "LinearAttention-two-sided": partial(LinearAttention, D, L_MAX, causal=False, feature_map="softmax"),
    "BigBird": partial(BigBird, D, L_MAX, block=4, num_heads=2),
    "BigBird-two-sided": partial(BigBird, D, L_MAX, block=4, num_heads=2, causal=False),
    "GSS": partial(GSS, D, L_MAX),
    "GSS-s4d": partial(GSS, D, L_MAX, filter=partial(S4D, modes=3)),
    "GSS-two-sided": partial(GSS, D, L_MAX, causal=False),
    "H3": partial(H3, D, L_MAX, filter=partial(S4D, modes=3), shift=partial(ShiftSSM, state=4)),
    "H3-heads": partial(H3, D, L_MAX, head_dim=4, filter=HyenaFilter),
    "H3-two-sided": partial(H3, D, L_MAX, causal=False),
    "Mega": partial(Mega, D, L_MAX, chunk=6),
    "Mega-two-sided": partial(Mega, D, L_MAX, chunk=6, causal=False),
    "MonarchMixer": partial(MonarchMixer, D, L_MAX, filter=partial(PairedFilter, emb_dim=5)),
    "MonarchMixer-two-sided": partial(MonarchMixer, D, L_MAX, causal=False, filter=partial(PairedFilter, emb_dim=5)),
    "BlockRecurrent": partial(BlockRecurrent, D, L_MAX, block=6, num_states=3, num_heads=2),
    "BlockRecurrent-lstm": partial(BlockRecurrent, D, L_MAX, block=16, num_states=2, gate="lstm"),
    "S5": partial(S5, D, L_MAX, state=12, blocks=2),
    "S5-two-sided": partial(S5, D, L_MAX, discretization="bilinear", causal=False),
    "GatedConv": partial(own.GatedConv, D, L_MAX),
    "GatedConv-exponential": partial(own.GatedConv, D, L_MAX, filter=own.Exponential),
    "GatedConv-two-sided": partial(own.GatedConv, D, L_MAX, filter=own.PowerLaw, causal=False),
}

# Mixers over grids, which have a contract of their own: by name, axes and how each is made.
SIZES: dict[int, tuple[int, ...]] = {1: (11,), 2: (6, 7), 3: (3, 5, 4)}
SMALL = partial(HyenaFilterND, emb_dim=5, width=8)

GRID_CASES: dict[str, tuple[int, Callable[..., MixerND]]] = {
    "HyenaND-1": (1, partial(HyenaND, D, SIZES[1], filter=SMALL)),
    "HyenaND-2": (2, partial(HyenaND, D, SIZES[2], filter=SMALL)),
    "HyenaND-3": (3, partial(HyenaND, D, SIZES[3], filter=SMALL)),
    "HyenaND-order-3": (2, partial(HyenaND, D, SIZES[2], order=3, filter=SMALL, value_filter=True)),
    "HyenaND-order-1": (2, partial(HyenaND, D, SIZES[2], order=1)),
    "HyenaND-heads": (2, partial(HyenaND, D, SIZES[2], num_heads=2, filter=SMALL)),
    "HyenaND-groups": (2, partial(HyenaND, D, SIZES[2], filter_groups=2, filter=SMALL, inner_factor=2)),
    "HyenaND-edges": (2, partial(HyenaND, D, SIZES[2], boundary=("circular", "reflect"), filter=SMALL)),
    "HyenaND-circle": (1, partial(HyenaND, D, SIZES[1], boundary="circular", filter=SMALL)),
    "HyenaND-causal-short": (2, partial(HyenaND, D, SIZES[2], short_padding="causal", short_taps=2, filter=SMALL)),
    "HyenaND-s4nd": (2, partial(HyenaND, D, SIZES[2], filter=partial(S4ND, filter=partial(S4D, modes=3)))),
    "HyenaND-s4nd-1": (1, partial(HyenaND, D, SIZES[1], filter=partial(S4ND, filter=partial(S4D, modes=3)))),
}
