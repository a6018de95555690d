"""Generation from models that FSDP2 has sharded: the text of the whole model, on one process and on two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from helpers import sharded
from helpers.models import MODELS

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("units", ["model", "blocks", "mixers"])
@pytest.mark.parametrize("name", MODELS)
def test_on_one_process(name: str, units: str) -> None:
    sharded.check_generation(name, units)


def test_on_two_processes(tmp_path: Path) -> None:
    cases = [(name, "blocks") for name in MODELS] + [("hyena", "model")]
    multiprocessing.spawn(sharded.run, args=(2, str(tmp_path), cases), nprocs=2)


@pytest.mark.usefixtures("process_group")
def test_deferred_initialisation() -> None:
    """Built on the meta device, sharded, given memory, initialised: as if built at once."""
    from hyena.models import CausalLM, CausalLMConfig

    config = CausalLMConfig(vocab_size=50, l_max=64, d_model=64, num_layers=2)
    torch.manual_seed(0)
    whole = CausalLM(config)
    model = sharded.shard(CausalLM(config, device="meta"), "blocks")
    model.to_empty(device="cpu")
    model.reset_parameters()
    for (name, got), want in zip(model.named_parameters(), whole.parameters(), strict=True):
        got = got.full_tensor()
        assert got.isfinite().all(), name
        torch.testing.assert_close(got.mean(), want.mean(), atol=0.3 * want.std().nan_to_num().item() + 1e-2, rtol=0)
        torch.testing.assert_close(got.std().nan_to_num(), want.std().nan_to_num(), atol=1e-2, rtol=0.3)
    tokens = torch.randint(50, (2, 20))
    loss = model.loss(tokens, tokens)
    assert abs(loss.item() - torch.tensor(50.0).log().item()) < 0.3
    assert len(model.generate(tokens, 3)[0]) == 23
