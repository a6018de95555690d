"""What stands in padding reaches no output and no gradient, NaN included."""

from __future__ import annotations

import pytest
import torch

from helpers.cases import laid_out, make_mask, rand
from helpers.operators import CONFIGS, D, build


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_of_everything(config: str, poison: float) -> None:
    m, mask = build(config).double(), make_mask("random", 2, 38)
    found = []
    for value in (0.0, poison):
        u = torch.where(mask[..., None], rand(2, 38, D), value).requires_grad_()
        m.zero_grad()
        y = m(u, mask)
        y.square().sum().backward()
        found.append({"y": y.detach(), "u": u.grad, **{n: p.grad for n, p in m.named_parameters() if p.numel()}})
    clean, dirty = found
    for name, want in clean.items():
        assert want.isfinite().all(), name
        assert torch.equal(dirty[name], want), name
    assert not dirty["u"][~mask].any()


@pytest.mark.parametrize("layout", ["contiguous", "channel_major"])
def test_autocast(layout: str) -> None:
    m, mask = build("default"), make_mask("left", 2, 38)
    u = laid_out(torch.where(mask[..., None], rand(2, 38, D).float(), torch.nan), layout)
    with torch.autocast("cpu", torch.bfloat16):
        m(u, mask).float().square().sum().backward()
    for name, p in m.named_parameters():
        assert p.numel() == 0 or p.grad.isfinite().all(), name
