"""The sections of gpu_measurements.py, by what they look at; bench.py has what they share."""
