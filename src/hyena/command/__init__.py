"""The command ``hyena``: DNA scored, embedded, classified, generated; small models of text; this machine measured."""

from hyena.command.main import main

__all__ = ["main"]
