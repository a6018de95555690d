"""Generation from models that FSDP2 has sharded: the text of the whole model, on one process and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import distributed as dist
from torch import multiprocessing

from helpers import sharded
from helpers.models import MODELS

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("units", ["model", "blocks", "mixers"])
@pytest.mark.parametrize("name", MODELS)
def test_on_one_process(name: str, units: str) -> None:
    sharded.check_generation(name, units)


def test_on_two_processes(tmp_path: Path) -> None:
    cases = [(name, "blocks") for name in MODELS] + [("hyena", "model")]
    multiprocessing.spawn(sharded.run, args=(2, str(tmp_path), cases), nprocs=2)
