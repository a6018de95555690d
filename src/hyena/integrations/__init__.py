"""Other people's worlds: the contract of ``nn.MultiheadAttention``, and models whose attention is replaced."""
