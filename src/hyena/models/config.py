"""What the configs of models have in common: plain values in and out, for checkpoints, and sizes that are sizes."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

Config = TypeVar("Config", bound="ModelConfig")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of the configs, which are frozen dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """The config that :meth:`to_dict` was called on.

        Raises:
            ValueError: keys that are not fields, listed.
        """
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown fields in a {cls.__name__}: {unknown}")
        return cls(**values)

    def _check_sizes(self, *names: str) -> None:
        """Raises ``ValueError`` for a field below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
