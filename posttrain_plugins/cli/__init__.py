"""The command line, `posttrain`: parsing and printing only."""

from posttrain_plugins.cli.main import app, main

__all__ = ["app", "main"]
