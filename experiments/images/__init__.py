"""Images: digits pixel by pixel, in vision transformers, and in networks at their own resolution."""
