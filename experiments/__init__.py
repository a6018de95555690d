"""Experiments: one folder a claim, run as ``python -m experiments.NAME`` in the repository's root.

Each has a size that two cores finish in minutes, ``--full`` for the published size, and ``--toy`` for a look at whether
it runs. What was found lies beside the script, as ``results.json`` and a plot; docs/results.md puts it beside what was
published.
"""
