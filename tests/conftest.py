"""Fixtures, the CUDA marker, and how hypothesis runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import distributed as dist

import hyena
from helpers.cases import Tier
from hyena import ops

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
# HYPOTHESIS_PROFILE=search looks for new examples, a hundred times as many.
settings.register_profile("search", settings.get_profile("default"), derandomize=False, max_examples=2500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

CUDA = torch.cuda.is_available()
TIERS = [
    pytest.param(Tier("fallback", "cpu"), id="fallback"),
    pytest.param(Tier("cpu", "cpu"), id="cpu"),
    pytest.param(Tier("cuda", "cuda"), id="cuda", marks=pytest.mark.cuda),
    pytest.param(Tier("fallback", "cuda"), id="cuda-fallback", marks=pytest.mark.cuda),
]
"""What the op tests run on. A device without kernels has only its fallback."""


def pytest_report_header() -> list[str]:
    """What these tests run on, above the first of them."""
    device = torch.cuda.get_device_name() if CUDA else "none"
    return [f"hyena {hyena.__version__}, torch {torch.__version__}, CUDA device: {device}"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot run, and says why; HYENA_REQUIRE_CUDA=1 makes it fail instead."""
    if item.get_closest_marker("cuda") is not None and not CUDA:
        if os.environ.get("HYENA_REQUIRE_CUDA") == "1":
            pytest.fail("HYENA_REQUIRE_CUDA=1, but torch sees no CUDA device")
        pytest.skip("torch sees no CUDA device here")
    tier = item.callspec.params.get("tier") if hasattr(item, "callspec") else None
    if tier is not None and tier.name != "fallback":
        _need_kernels(tier.device)


def _need_kernels(device: str) -> None:
    if ops.has_kernel("recurrence", torch.device(device)):
        return
    if device == "cuda" and os.environ.get("HYENA_REQUIRE_CUDA") == "1":
        pytest.fail("HYENA_REQUIRE_CUDA=1, but hyena was built without CUDA kernels")
    pytest.skip(f"no kernels for {device} here, where its fallback is tested")


@pytest.fixture
def needs_cuda_kernels() -> None:
    """Skips where there is a GPU and hyena has no kernels for it."""
    _need_kernels("cuda")


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """Fills what ``torch.empty`` returns with NaN, in Python and in C++, so that nothing is left unwritten unseen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, nan_filled: None) -> Tier:
    """Each tier in turn, with NaN in uninitialised memory."""
    return request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn."""
    return request.param


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """This process alone, as a group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
