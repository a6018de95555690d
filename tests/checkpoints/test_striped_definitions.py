"""Models of random weights and every setting that changes what is computed, compared with the definition in float64."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.definitions import assert_close
from helpers.striped import first_generation, logits, random_state, second_generation
from hyena.checkpoints import load_striped_hyena

FIRST = {
    "as it is": {},
    "tied": {"tie_embeddings": True},
    "no final norm": {"final_norm": False},
    "plain norm": {"use_flash_rmsnorm": False},
    "no column split": {"column_split_hyena": False},
    "no groups of queries": {"proj_groups": 1},
    "all biases": {"qkv_proj_bias": True, "mha_out_proj_bias": True},
    "no short bias": {"short_filter_bias": False},
    "gelu": {"mlp_activation": "gelu"},
    "rounded width": {"inner_mlp_size": None, "inner_size_multiple_of": 48},
    "interpolated": {"use_interpolated_rotary_pos_emb": True, "rotary_emb_scaling_factor": 4},
    "factor not used": {"rotary_emb_scaling_factor": 4},
    "another base": {"rotary_emb_base": 500},
}
SECOND = {
    "as it is": {},
    "untied": {"tie_embeddings": False},
    "not interleaved": {"interleave": False},
    "column split": {"interleave": False, "column_split_hyena": True},
    "interleaved and split": {"column_split_hyena": True},
    "flipped": {"hyena_flip_x1x2": True},
    "attention by parts": {"column_split": False},
    "all biases": {"qkv_proj_bias": True, "short_filter_bias": True},
    "no biases": {"hyena_out_proj_bias": False, "mha_out_proj_bias": False},
    "activation everywhere": {"evo2_style_activations": False},
    "medium filter of 130": {"hcm_filter_length": 130, "hcs_filter_length": 5},
    "one group": {"hcs_filter_groups": 1, "hcm_filter_groups": 1},
    "silu": {"mlp_activation": "silu"},
    "interpolated": {"use_interpolated_rotary_pos_emb": True, "rotary_emb_scaling_factor": 128},
}
CASES = [(first_generation, name, c) for name, c in FIRST.items()]
CASES += [(second_generation, name, c) for name, c in SECOND.items()]


@pytest.mark.parametrize(("make", "name", "changes"), CASES, ids=[f"{m.__name__}: {n}" for m, n, _ in CASES])
@torch.no_grad()
def test_every_setting(make: Any, name: str, changes: dict[str, Any]) -> None:
    config = make(**changes)
    state, ids = random_state(config), torch.randint(19, (2, 150))
    want = logits(state, config, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_striped_hyena(state, config, dtype=torch.float64)
    assert_close(model(ids), want, name)
    stepped = torch.cat(
        [
            model.prefill(part, model_state)[0]
            for model_state in [model.init_state(2)]
            for part in ids.split([1, 2, 130, 1, 16], dim=1)
        ],
        dim=1,
    )
    assert_close(stepped, want, name)
    single = load_striped_hyena(state, config)(ids)
    assert single.dtype == torch.float32
    assert_close(single.double(), want, name, 1e-5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.booleans())
def test_pieces_of_any_length(sizes: list[int], second: bool) -> None:
    """Chunks, with chunks inside them, are the whole row."""
    config = second_generation() if second else first_generation()
    ids = torch.randint(19, (1, sum(sizes)))
    model = load_striped_hyena(random_state(config), config, dtype=torch.float64, l_max=256)
    state = model.init_state(1)
    got = torch.cat([model.prefill(part, state, chunk=7)[0] for part in ids.split(sizes, dim=1)], dim=1)
    with torch.no_grad():
        assert_close(got, model(ids), "pieces")


@pytest.mark.parametrize("make", [first_generation, second_generation])
@torch.no_grad()
def test_padded_and_packed_rows_are_what_they_are_alone(make: Any) -> None:
    config = make()
    model = load_striped_hyena(random_state(config), config, dtype=torch.float64)
    ids, keep = torch.randint(19, (2, 60)), torch.arange(60) >= torch.tensor([[0], [23]])
    want = model(ids[1:, 23:])[0]
    assert_close(model(ids, keep)[1, 23:], want, "left")
    assert_close(model(ids.roll(-23, 1), keep.roll(-23, 1))[1, :37], want, "right")
    packed = model(torch.cat([ids[:1], ids[1:, 23:]], dim=1), cu_seqlens=torch.tensor([0, 60, 97]))
    assert_close(packed[0, 60:], want, "packed")
    state = model.init_state(2)
    got = model.prefill(ids, state, keep, chunk=11)[0]
    assert_close(got[1, 23:], want, "in chunks")


@torch.no_grad()
def test_poles_anywhere() -> None:
    config = first_generation(max_seqlen=150)
    state, ids = random_state(config), torch.randint(19, (1, 150))
    poles = state["blocks.0.filter.poles"]
    poles[0, 0, 0] = torch.tensor([0.0, 0.0])
    poles[1, 0, 0] = torch.tensor([0.0, 1.0])
    poles[2, 0, 0] = torch.tensor([-1.0, 0.0])
    poles[3, 0, 0] = torch.tensor([0.9, 0.5])  # of modulus 1.03: grows by 80
    poles[4, 0, 0] = torch.tensor([1e-30, 0.0])
    with pytest.warns(UserWarning, match=r"1 poles of zero.*2 poles on the unit circle.*1 poles outside.*kept"):
        model = load_striped_hyena(state, config, dtype=torch.float64)
    want = logits(state, config, ids)
    assert_close(model(ids), want, "poles")
    assert_close(model.prefill(ids, model.init_state(1), chunk=40)[0], want, "poles, in chunks")
    poles[5, 0, 0] = torch.tensor([40.0, 9.0])
    with pytest.warns(UserWarning, match=r"1 poles so far outside.*l_max=150.*moved inwards.*1 in layer 0"):
        model = load_striped_hyena(state, config)
    assert model(ids).isfinite().all()
    assert model.prefill(ids, model.init_state(1), chunk=40)[0].isfinite().all()
    for p in model.parameters():
        assert p.isfinite().all()


@torch.no_grad()
def test_real_poles_anywhere() -> None:
    config = second_generation(max_seqlen=150)
    state, ids = random_state(config), torch.randint(19, (1, 150))
    poles = state["blocks.2.filter.log_poles"]
    poles[0, 0], poles[1, 0], poles[2, 0], poles[3, 0] = 0.0, 0.02, -200.0, -1e-12
    with pytest.warns(UserWarning, match=r"1 poles on the unit circle.*\(1 in layer 2\); 1 poles outside"):
        model = load_striped_hyena(state, config, dtype=torch.float64)
    want = logits(state, config, ids)
    assert_close(model(ids), want, "poles")
    assert_close(model.prefill(ids, model.init_state(1), chunk=40)[0], want, "poles, in chunks")
    poles[0, 0], poles[1, 0] = -torch.inf, 50.0
    with pytest.warns(UserWarning, match="1 poles of zero.*1 poles so far outside"):
        model = load_striped_hyena(state, config)
    assert model(ids).isfinite().all()


@torch.no_grad()
def test_fine_tuning_keeps_what_has_no_weight() -> None:
    """Layers without a weight of the input itself get none in training."""
    config = second_generation()
    model = load_striped_hyena(random_state(config), config)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["blocks.0.mixer.conv.bias"]
    assert not model.blocks[0].mixer.conv.bias.any()
    model.reset_parameters()
    assert not model.blocks[0].mixer.conv.bias.any()
