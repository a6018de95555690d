"""Released Hyena operators: safari's, the standalone file's and Zoology's, whose weights have the same names."""

from hyena.checkpoints.safari.blocks import SafariOperator
from hyena.checkpoints.safari.config import LAYOUTS, Positions, SafariConfig
from hyena.checkpoints.safari.filters import NoWindow, ReleasedFilter, StoredEncoding
from hyena.checkpoints.safari.operator import load_safari_operator

__all__ = [
    "LAYOUTS",
    "NoWindow",
    "Positions",
    "ReleasedFilter",
    "SafariConfig",
    "SafariOperator",
    "StoredEncoding",
    "load_safari_operator",
]
