"""Commands that are imported and built when they are asked for: typer takes longer for all than most of them run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any

import click
import typer
import typer.core

__all__ = ["CommandGroup", "LazyCommands"]


class LazyCommands(MutableMapping[str, click.Command]):
    """Commands by name.

    Args:
        targets: name -> `module:attr` of this room, a function or a group of commands.
    """

    def __init__(self, targets: Mapping[str, str]) -> None:
        self.targets = dict(targets)
        self.built: dict[str, click.Command] = {}

    def source(self, name: str) -> Any:
        """Return the function, or the group, that a name stands for."""
        module, _, attr = self.targets[name].partition(":")
        return getattr(import_module(f"posttrain_plugins.cli.{module}"), attr)

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.built:
            self.built[name] = source = self.source(name)
            if not isinstance(source, click.Command):
                alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
                alone.command(name)(source)
                self.built[name] = typer.main.get_command(alone)
        return self.built[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self.targets[name], self.built[name] = "", command

    def __delitem__(self, name: str) -> None:
        del self.targets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)


class CommandGroup(typer.core.TyperGroup):
    """A group of `LazyCommands` whose help is plain text, with the first paragraph of each command whole.

    Args:
        targets: see `LazyCommands`.
        **attributes: of typer's group.
    """

    commands: LazyCommands  # type: ignore[assignment]

    def __init__(self, targets: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(**{**attributes, "suggest_commands": False})  # click suggests one itself
        self.commands = LazyCommands(targets)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in their order."""
        return list(self.commands)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help as click does."""
        # not as typer: importing rich's Markdown takes as long as all the rest of `posttrain --help`
        click.Group.format_help(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the section of commands."""
        texts = {}
        for name in self.commands:
            source = self.commands.source(name)
            # of a function its docstring, so that none of them is built; click would cut each to one line
            text = (source.help if isinstance(source, click.Command) else source.__doc__) or ""
            texts[name] = " ".join(text.partition("\n\n")[0].split())
        with formatter.section("Commands"):
            formatter.write_dl(list(texts.items()))
