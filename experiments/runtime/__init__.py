"""Time and memory of Hyena and of attention by length."""
