"""Mixers: ``(B, L, D) -> (B, L, D)`` behind one interface."""
