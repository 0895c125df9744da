"""The command line: parse, call, print. Commands load on use, so that help and listings stay quick."""

import os
import sys
from importlib import import_module

import click

from harness import __version__
from harness.errors import HarnessError

COMMANDS = {  # name -> (module, function, help)
    "run": ("harness.cli.run", "run", "Train and measure mixers, then print the leaderboard."),
    "check": ("harness.cli.check", "check", "Hold mixers against their contract."),
    "time": ("harness.cli.time", "time", "Time mixers, and say how well the times are known."),
    "compare": ("harness.cli.compare", "compare", "Decide which of two mixers is faster, or that nobody can say."),
    "device": ("harness.cli.device", "device", "Show this device and the rates that it reaches."),
    "leaderboard": ("harness.cli.board", "leaderboard", "Print the leaderboard of a folder of records."),
    "submit": ("harness.cli.board", "submit", "Verify records and add them to the leaderboard."),
    "verify": ("harness.cli.board", "verify", "Recompute every number of a record from its raw data."),
    "records": ("harness.cli.board", "records", "List the records of a folder."),
    "mixers": ("harness.cli.listing", "mixers", "List the registered mixers and what is unavailable here."),
    "tasks": ("harness.cli.listing", "tasks", "List the tasks and their options."),
    "suites": ("harness.cli.listing", "suites", "List the presets and what each of them runs."),
    "plugins": ("harness.cli.plugins", "plugins", "List the plugins, find what is wrong with them, start a new one."),
    "data": ("harness.cli.data", "data", "Write a task's data to a file."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the command names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command, imported now, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the one-line help of each command without importing it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command `args` begin with; an unknown one is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from harness.errors import nearest

            raise click.UsageError(f"unknown command {args[0]!r}: {nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="harness")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def harness(debug: bool) -> None:
    """Measure which sequence mixers can really recall, at what cost and with how much state.

    Start with: harness run --all
    """


def main() -> None:
    """Runs the command line; an error is one message and an exit code, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    if debug:  # accepted anywhere on the line
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        harness(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `harness leaderboard | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except HarnessError as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        click.echo(f"error: {type(error).__name__}: {error}\n(a bug of the harness? --debug shows where)", err=True)
        sys.exit(1)
