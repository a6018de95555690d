"""Sampling from models."""

from hyena.generation.sampling import generate, sample

__all__ = ["generate", "sample"]
