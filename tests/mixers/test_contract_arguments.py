"""What every exported mixer says of arguments that do not fit, in the same words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers.mixers import CASES, D
from hyena.mixers import Mixer


@pytest.fixture(params=CASES)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    return CASES[request.param](dtype=torch.float64).eval()


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64)


def needs_steps(mixer: Mixer) -> None:
    """Skips mixers that cannot be stepped; the contract's own tests look at what they say."""
    try:
        mixer.init_state(1)
    except ValueError as reason:
        pytest.skip(f"cannot be stepped: {reason}")


WRONG_OFFSETS = {
    "rise from 0": [[1, 5, 12], [0, 5, 11], [0, 5, 13], [0, 7, 5, 12]],
    "at least 2 offsets": [[0]],
}


def test_offsets_of_packed_rows_are_checked(mixer: Mixer) -> None:
    u = rows(1, 12)
    for message, wrong in WRONG_OFFSETS.items():
        for found in wrong:
            with pytest.raises(ValueError, match=message):
                mixer(u, cu_seqlens=torch.tensor(found))
    with pytest.raises(TypeError, match="cu_seqlens must be a tensor of offsets, got list"):
        mixer(u, cu_seqlens=[0, 5, 12])
    with pytest.raises(TypeError, match="mask must be a bool tensor, got list"):
        mixer(u, [[True] * 12])


def test_the_longest_row_is_of_packed_rows(mixer: Mixer) -> None:
    u, offsets = rows(1, 12), torch.tensor([0, 5, 12])
    with pytest.raises(ValueError, match=r"max_seqlen=3 is the longest of packed rows"):
        mixer(u, max_seqlen=3)
    with pytest.raises(ValueError, match=r"a row of 7 positions, more than the 6 of max_seqlen"):
        mixer(u, cu_seqlens=offsets, max_seqlen=6)
    for wrong in (7.0, True, torch.tensor(7), "7"):
        with pytest.raises(TypeError, match="max_seqlen must be an int"):
            mixer(u, cu_seqlens=offsets, max_seqlen=wrong)
    needs_steps(mixer)
    with pytest.raises(ValueError, match="takes no cu_seqlens and no max_seqlen"):
        mixer(u, max_seqlen=3, state=mixer.init_state(1, 20))


def test_rows_without_positions_are_refused(mixer: Mixer) -> None:
    """By all in the same words, so that one mixer can take another's place."""
    for batch in (0, 2):
        with pytest.raises(ValueError, match="at least one position, got length=0"):
            mixer(rows(batch, 0))
    with pytest.raises(ValueError, match="at least one position, got length=0"):
        mixer(rows(1, 0), cu_seqlens=torch.tensor([0, 0]))


def test_every_parameter_can_be_parametrised(mixer: Mixer) -> None:
    for name, part in mixer.named_modules():
        for own in [n for n, _ in part.named_parameters(recurse=False)]:
            parametrize.register_parametrization(part, own, nn.Identity())
            parametrize.remove_parametrizations(part, own)
            assert hasattr(part, own), f"{name}.{own}"


def test_states_refuse_what_does_not_fit(mixer: Mixer) -> None:
    needs_steps(mixer)
    state = mixer.init_state(2, 20)
    for rows_of, got in (([0, 2], "0 to 2"), ([-1, 1], "-1 to 1")):
        with pytest.raises(ValueError, match=f"rows must be 0 to 1, got {got}"):
            state.reorder(torch.tensor(rows_of))
    with pytest.raises(ValueError, match=r"int32 or int64, got torch.float32 of shape \(2,\)"):
        state.reorder(torch.zeros(2))
    for batch in (1.5, None, True):
        with pytest.raises(TypeError, match=f"batch must be an integer, got {batch}"):
            mixer.init_state(batch)
    for length in (2.5, "x", True):
        with pytest.raises(TypeError, match=f"max_length must be an integer, got {length!r}"):
            mixer.init_state(1, max_length=length)
