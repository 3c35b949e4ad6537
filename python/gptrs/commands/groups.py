"""How `gptrs` and `gptrs plot` show their commands: under headings, each with its whole sentence.

click alone lists them by the alphabet, and cuts off what a line has no room for.
"""

from __future__ import annotations

from typing import Any

import click

EXIT_USAGE = 2
_HEADING = "Commands"
# Longer than any first sentence: click wraps what it does not cut off.
_WHOLE_SENTENCE = 200


class TopicGroup(click.Group):
    """A group whose help has its commands by topic; without arguments, it shows that help."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._topics: dict[str, list[str]] = {}

    def add_topic(self, topic: str, *commands: click.Command) -> None:
        """Adds commands under a heading; those that no topic has stand under "Commands"."""
        for command in commands:
            self.add_command(command)
        self._topics[topic] = [str(command.name) for command in commands]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Shows the help on stderr, as an error, if no command is named."""
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(EXIT_USAGE)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a table for each topic; all have their columns at the same places."""
        named = {name for names in self._topics.values() for name in names}
        rest = [name for name in self.list_commands(ctx) if name not in named]
        width = max(map(len, self.commands), default=0)
        for topic, names in (self._topics | {_HEADING: rest}).items():
            rows = [
                (name.ljust(width), self.commands[name].get_short_help_str(_WHOLE_SENTENCE))
                for name in names
            ]
            if rows:
                with formatter.section(topic):
                    formatter.write_dl(rows)
