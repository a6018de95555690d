"""What the experiments have in common: models by name, a training loop, runs that go on after a kill, plots."""
