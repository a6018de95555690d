"""The command ``hyena``: scores, embeds and generates sequences of FASTA files."""

from hyena.command.main import main

__all__ = ["main"]
