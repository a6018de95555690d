"""Base of the model configs: to and from plain dicts, and checks of their values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, TypeVar

Config = TypeVar("Config", bound="ModelConfig")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of the configs, which are frozen dataclasses.

    Attributes:
        renamed: earlier names of fields, which :meth:`from_dict` still takes, and their names now.
    """

    renamed: ClassVar[dict[str, str]] = {
        "n_layer": "num_layers",
        "n_classes": "num_classes",
        "filter_order": "filter_width",
        "short_filter_order": "short_taps",
    }

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as plain values.

        Raises:
            ValueError: a field that is none, with its name.
        """
        for field in dataclasses.fields(self):
            _check_plain(f"{type(self).__name__}.{field.name}", getattr(self, field.name))
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Returns the config that :meth:`to_dict` was called on.

        Raises:
            ValueError: keys that are not fields, or fields without a value, listed; a field by two of its names, with
                values that differ.
        """
        fields = {f.name for f in dataclasses.fields(cls)}
        names = {key: now for key, now in cls.renamed.items() if key not in fields and now in fields}
        values = with_names(values, names, f"a {cls.__name__}")
        if unknown := sorted(set(values) - fields):
            raise ValueError(f"unknown fields in a {cls.__name__}: {unknown}; it has {', '.join(sorted(fields))}")
        if missing := sorted(f.name for f in dataclasses.fields(cls) if _is_needed(f) and f.name not in values):
            raise ValueError(f"a {cls.__name__} needs {', '.join(missing)}, got {', '.join(sorted(values)) or 'none'}")
        return cls(**values)

    def _check_sizes(self, *names: str) -> None:
        """Raises ``ValueError`` for a field that is no integer, or below 1."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def _check_flags(self, *names: str) -> None:
        """Raises ``ValueError`` for a field that is neither True nor False."""
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def _check_probabilities(self, *names: str) -> None:
        """Raises ``ValueError`` for a field that is no number in [0, 1)."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")

    def _check_numbers(self, *names: str, positive: bool = False) -> None:
        """Raises ``ValueError`` for a field that is no finite number from 0 on, or with ``positive`` above 0."""
        for name in names:
            value = getattr(self, name)
            if not is_number(value) or value < 0 or (positive and value == 0):
                kind = "a positive number" if positive else "a finite number, not negative"
                raise ValueError(f"{name} must be {kind}, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, finite and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def with_names(values: dict[str, Any], names: dict[str, str], of: str) -> dict[str, Any]:
    """Returns values by the names that they have now.

    Args:
        values: by name.
        names: earlier names, and those they have now.
        of: what the values are of, for the error.

    Raises:
        ValueError: one of them is there by two names, with two values.
    """
    first: dict[str, str] = {}
    for key, value in values.items():
        other = first.setdefault(names.get(key, key), key)
        if other != key and values[other] != value:
            raise ValueError(
                f"{other}={values[other]!r} and {key}={value!r} are two names of one setting of {of}: leave one out"
            )
    return {now: values[key] for now, key in first.items()}


def image_size(size: Any) -> tuple[int, int]:
    """Returns pixels ``(height, width)`` of one number for both axes or of two.

    Raises:
        ValueError: something else than one or two integers of at least 1.
    """
    both = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(both) != 2 or any(isinstance(n, bool) or not hasattr(n, "__index__") or n < 1 for n in both):
        raise ValueError(f"image_size must be (height, width) or one number for both, each at least 1, got {size!r}")
    return both


def _check_plain(name: str, value: Any) -> None:
    """Raises ``ValueError`` for a value that JSON does not have."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(f"{name}[{key!r}]", entry)
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            _check_plain(f"{name}[{i}]", entry)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(
            f"{name} is {value!r}, which cannot be saved: a saved config names classes that hyena.mixers and "
            "hyena.filters export, and has plain values; build this model from a config in code"
        )


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
