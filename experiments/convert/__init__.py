"""Attention turned into Hyena, and what that is compared with."""
