"""``wgctl``: its commands, each loaded when it is called, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import rich_click as click
from rich_click import RichGroup, RichHelpConfiguration


class Entry(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    target: str
    """``module:attribute``."""
    summary: str
    is_hidden: bool = False


COMMANDS: dict[str, Entry] = {
    "up": Entry("cli.embedded:up", "Start a service on this machine, for you alone."),
    "down": Entry("cli.embedded:down", "Stop the service on this machine."),
    "status": Entry("cli.embedded:status", "Say whether the service runs, and where."),
    "submit": Entry("cli.submit:submit", "Queue the job that a file describes, and print its id."),
    "validate": Entry("cli.submit:validate", "Check a job file and its data sets; nothing is sent."),
    "jobs": Entry("cli.jobs:jobs", "List, follow, cancel and wait for jobs."),
    "adapters": Entry("cli.hub:adapters", "List, download and convert adapters."),
    "federation": Entry("cli.federation:federation", "Invite sites into a federated job, and follow its rounds."),
    "site": Entry("cli.site:site", "Take part in a federation with data that stays here."),
    "serve": Entry("cli.serve:serve", "Run the service as the settings say, in the foreground."),
    "hub": Entry("cli.collection:hub", "Look after the bytes that the hub keeps; for an administrator."),
    "tokens": Entry("cli.tokens:tokens", "Make, list and revoke tokens."),
    "orgs": Entry("cli.organisations:orgs", "Share namespaces: organisations and their members."),
    "audit": Entry("cli.audit:audit", "Export the log of every change, and check that nobody touched it."),
    "quotas": Entry("cli.quotas:quotas", "See and set how much a namespace may hold: bytes, adapters and versions."),
    "gateway": Entry("cli.serve:gateway", "Drive Ray for the service that started it.", is_hidden=True),
}

PANELS: dict[str, tuple[str, ...]] = {
    "Fine-tune": ("submit", "validate", "jobs"),
    "Use adapters": ("adapters",),
    "Train together": ("federation", "site"),
    "On this machine": ("up", "down", "status"),
    "Run it for others": ("serve", "hub", "tokens", "audit", "quotas"),
    "Share": ("orgs",),
}


class LazyGroup(RichGroup):
    """The top of ``wgctl``; listing its commands loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the base class's signature
        """Return every command's name, in the order of the panels."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the base class's signature
        """Return a stand-in with the command's name and summary, which is all that a list needs."""
        entry = COMMANDS.get(cmd_name)
        return entry and click.RichCommand(name=cmd_name, short_help=entry.summary, help=entry.summary, hidden=entry.is_hidden)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, loaded."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else None, rest


def load_command(name: str) -> click.Command:
    """Return the command called ``name``; this imports what it needs to be described, and not yet what it needs to run."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
    return command


_HELP = RichHelpConfiguration(
    command_groups={"wgctl": [{"name": panel, "commands": list(names)} for panel, names in PANELS.items()]},
    text_markup="ansi",
    max_width=100,
    commands_panel_title="Commands",
)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "rich_help_config": _HELP, "max_content_width": 100},
    epilog="Start with: wgctl validate job.yaml, then: wgctl submit job.yaml --wait",
)
@click.version_option(package_name="wegeft-hub", prog_name="wgctl", message="%(prog)s %(version)s")
def wgctl() -> None:
    """Fine-tune models with WeGeFT, and share the adapters.

    Settings come from WEGEFT_... variables; docs/settings.md lists them.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``wgctl`` and return its exit status; whatever happens, the user sees a message and no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = wgctl.main(given, prog_name="wgctl", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the one place where everything ends
        from cli.failures import report

        return report(error, is_json="--json" in given)
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
