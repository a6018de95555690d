"""What tests share: the oracle, inputs, tolerances, models."""
