"""Decoding and distillation of the language models: loss against modes, and what a token costs."""
