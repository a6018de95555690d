"""A model's weights on several devices, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hyena.checkpoints.checks import listed

Devices = str | int | torch.device | Mapping[str, str | int | torch.device]


class Placement:
    """Which device each weight of a model goes to.

    Args:
        devices: one for all; or by the names of modules (``"embedding"``, ``"blocks.0"``, ``"blocks"``, ``"norm"``,
            ``"head"``, or ``""`` for the rest): the longest name that a weight's begins with counts.
        names: of the weights.

    Raises:
        ValueError: weights that no name covers, or names that cover none, listed.
    """

    def __init__(self, devices: Devices, names: Iterable[str]) -> None:
        given = devices if isinstance(devices, Mapping) else {"": devices}
        self._devices = {key: _device(value) for key, value in given.items()}
        used, without = set(), []
        for name in names:
            key = self._key(name)
            if key is None:
                without.append(name)
            else:
                used.add(key)
        if without:
            raise ValueError(f"device_map has no device for {listed(without)}; a name of '' is for the rest")
        if unknown := sorted(set(self._devices) - used - {""}):
            raise ValueError(f"device_map names modules without weights of their own: {listed(unknown)}")

    def _key(self, name: str) -> str | None:
        parts = name.split(".")
        for count in range(len(parts), -1, -1):
            if (key := ".".join(parts[:count])) in self._devices:
                return key
        return None

    def of(self, name: str) -> torch.device:
        """The device of a weight, or of a module's weights."""
        key = self._key(name)
        assert key is not None, name
        return self._devices[key]


def _device(value: str | int | torch.device) -> torch.device:
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"device_map has {value!r}, which is no device: {error}") from None


def connect(model: nn.Module, home: torch.device) -> None:
    """Lets a model whose blocks, norm and head are on several devices be called: inputs move to where they are needed.

    Args:
        model: with ``blocks``; its direct children and its blocks are each on one device.
        home: where logits come out.
    """
    modules: list[nn.Module] = [part for name, part in model.named_children() if name != "blocks"]
    modules += list(model.blocks)  # type: ignore[arg-type]
    devices = {part: next((p.device for p in part.parameters()), home) for part in modules}
    if len(set(devices.values()) | {home}) == 1:
        return
    for part, device in devices.items():
        part.register_forward_pre_hook(_mover(device), with_kwargs=True)
    model.register_forward_hook(lambda module, inputs, y: y.to(home))


def _mover(device: torch.device) -> Any:
    def move(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        def to(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        return tuple(to(value) for value in args), {name: to(value) for name, value in kwargs.items()}

    return move
