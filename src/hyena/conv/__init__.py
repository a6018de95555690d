"""Filters applied to a sequence, at once or as the input arrives."""

from hyena.conv.distill import distill, distillation_errors
from hyena.conv.history import History
from hyena.conv.long import LongConv, Past
from hyena.conv.long_nd import LongConvND
from hyena.conv.modal import Recurrence
from hyena.conv.online import Online
from hyena.conv.short import ShortConv
from hyena.conv.short_nd import ShortConvND
from hyena.conv.tiled import Tiles
from hyena.conv.window import Window

__all__ = [
    "History",
    "LongConv",
    "LongConvND",
    "Online",
    "Past",
    "Recurrence",
    "ShortConv",
    "ShortConvND",
    "Tiles",
    "Window",
    "distill",
    "distillation_errors",
]
