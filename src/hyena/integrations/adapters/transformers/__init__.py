"""Hyena in place of self-attention in models of ``transformers``. Importing it imports no ``transformers``."""

from hyena.integrations.adapters.transformers import builders
from hyena.integrations.adapters.transformers.adapter import TransformersAdapter
from hyena.integrations.adapters.transformers.builders import check_kept
from hyena.integrations.adapters.transformers.padding import PaddingHook, carry_padding

__all__ = ["PaddingHook", "TransformersAdapter", "builders", "carry_padding", "check_kept"]
