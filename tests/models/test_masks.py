"""One contract for the masks of all models: bool, or a tokenizer's 0 and 1, in forward, loss, prefill and generate."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from helpers.cases import offsets
from helpers.models import L_MAX, MODELS, V, build


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_masks_are_bool_masks(name: str, dtype: torch.dtype) -> None:
    model, tokens = build(name), torch.randint(V, (2, 10))
    mask = torch.arange(10) >= torch.tensor([[0], [4]])
    whole = mask.to(dtype)
    assert torch.equal(model(tokens, whole)[mask], model(tokens, mask)[mask])
    assert torch.equal(model.hidden_states(tokens, whole)[mask], model.hidden_states(tokens, mask)[mask])
    got, want = (model.prefill(tokens, model.init_state(2), m)[0] for m in (whole, mask))
    assert torch.equal(got, want)
    for row, same in zip(*(model.generate(tokens, 5, mask=m, temperature=0) for m in (whole, mask)), strict=True):
        assert torch.equal(row, same)
    if name != "dna":
        assert torch.equal(model.loss(tokens, tokens, whole), model.loss(tokens, tokens, mask))


@pytest.mark.parametrize("name", MODELS)
def test_other_masks_raise_everywhere(name: str) -> None:
    model, tokens = build(name), torch.randint(V, (2, 5))
    doors = [
        lambda m: model(tokens, m),
        lambda m: model.hidden_states(tokens, m),
        lambda m: model.prefill(tokens, model.init_state(2), m),
        lambda m: model.generate(tokens, 1, mask=m),
    ]
    if name != "dna":
        doors.append(lambda m: model.loss(tokens, tokens, m))
    for door in doors:
        with pytest.raises(ValueError, match=r"bool or integer, of shape \(2, 5\).*got torch.float32"):
            door(torch.ones(2, 5))
        with pytest.raises(ValueError, match=r"bool or integer, of shape \(2, 5\).*\(2, 6\)"):
            door(torch.ones(2, 6, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"1 where a token is kept and 0 for padding; got 2.*cu_seqlens"):
            door(torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]]))


@pytest.mark.parametrize("name", MODELS)
def test_integer_masks_compile(name: str) -> None:
    model, tokens = build(name), torch.randint(V, (2, 10))
    mask = (torch.arange(10) >= torch.tensor([[0], [4]])).long()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    kept = mask.bool()
    torch.testing.assert_close(compiled(tokens, mask)[kept], model(tokens, mask)[kept])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("at_most", [None, 6, 2 * L_MAX])
def test_a_mask_acts_inside_packed_rows(name: str, at_most: int | None) -> None:
    """Learned positions count the kept positions of each packed row, wherever its padding is; a bound may be high."""
    model, sizes = build(name), [6, 1, 5, 0, 6]
    tokens, cu_seqlens = torch.randint(V, (1, sum(sizes))), offsets(sizes)
    keep = torch.ones(1, sum(sizes), dtype=torch.bool)
    keep[0, [0, 1, 8, 10, 11, 15]] = False
    y = model(tokens, keep, cu_seqlens, at_most)
    for start, stop in pairwise(cu_seqlens.tolist()):
        part = slice(start, stop)
        kept = keep[:, part]
        if stop > start:
            torch.testing.assert_close(y[:, part][kept], model(tokens[:, part], kept)[kept])


@pytest.mark.parametrize("name", MODELS)
def test_offsets_that_are_none_raise(name: str) -> None:
    model, tokens = build(name), torch.randint(V, (1, 12))
    with pytest.raises(TypeError, match="cu_seqlens must be a tensor of offsets, got list"):
        model(tokens, None, [0, 6, 12])
    with pytest.raises(ValueError, match=r"at least 2 offsets, .* got torch.int64 of shape \(1,\)"):
        model(tokens, None, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"packed rows come as one row of shape .* got batch 2"):
        model(tokens.expand(2, -1), None, torch.tensor([0, 12]))
    with pytest.raises(ValueError, match="row of 8 positions, more than the 5 of max_seqlen"):
        model(tokens, None, torch.tensor([0, 8, 12]), 5)
    for wrong in ([0, 5], [1, 12], [0, 8, 6, 12]):
        with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the packed length 12"):
            model(tokens, None, torch.tensor(wrong))
