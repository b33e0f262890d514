"""The group `bge`: the client's commands, and those of installed packages."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from ..errors import ConfigurationError
from .command import exit_codes

ENTRY_POINTS = "bge_client.commands"  # the group in which a package registers its commands
RETRIEVAL_COMMANDS = {"bulk", "evaluate", "index", "migrate", "search"}
INSTALL = "pip install bge-retrieval"
INSTALL_COMMANDS = {  # of extras and other packages
    "bulk": "pip install 'bge-retrieval[bulk]'",
    "plan": "pip install 'bge-builder[plan]'",
}


class CommandGroup(click.Group):
    """Imports a command of another package only when it is run or listed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*self.commands, *entry_points(group=ENTRY_POINTS).names})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command, or None if there is none. Exits with 2 if it is not installed."""
        if name in self.commands:
            return self.commands[name]
        with exit_codes():
            for entry_point in entry_points(group=ENTRY_POINTS, name=name):
                try:
                    command: click.Command = entry_point.load()
                except ImportError as error:
                    raise ConfigurationError(
                        f"`bge {name}` needs {error.name or 'more'}: "
                        f"{INSTALL_COMMANDS.get(name, INSTALL)}"
                    ) from None
                return command
            if name in RETRIEVAL_COMMANDS:
                raise ConfigurationError(f"`bge {name}` needs bge-retrieval: {INSTALL}")
        return None

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        if missing := sorted(RETRIEVAL_COMMANDS - set(self.list_commands(context))):
            formatter.write_paragraph()
            formatter.write_text(f"Not installed: {', '.join(missing)} ({INSTALL})")
        super().format_epilog(context, formatter)
