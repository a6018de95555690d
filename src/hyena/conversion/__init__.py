"""A trained transformer turned into Hyena: attention replaced, and taught what it computed."""

from hyena.conversion.convert import convert
from hyena.conversion.report import ConversionReport, LayerReport, Losses

__all__ = ["ConversionReport", "LayerReport", "Losses", "convert"]
