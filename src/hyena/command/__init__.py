"""The command ``hyena``: scores, embeds, classifies and generates sequences of FASTA files."""

from hyena.command.main import main

__all__ = ["main"]
