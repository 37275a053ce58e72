"""Command line `ckptool`: options -> api -> render -> exit code, without logic of its own."""

import gc
import os
import re
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from typing import IO, Any, Final, NoReturn

import click
from click.exceptions import Exit, NoArgsIsHelpError

from ckptool.errors import CkptoolError, Interrupted, describe_os_error
from ckptool.locations import mask_credentials, suggest_module_option

COMMAND_GROUPS: Final = {
    "Look into checkpoints": {
        "inspect": "Describe checkpoints without loading or executing anything.",
        "diff": "Compare a checkpoint with a module, or with another checkpoint.",
        "digest": "Compute a content digest that does not depend on the file format.",
        "merge": "Merge partial diffs computed on several machines.",
    },
    "Load an old checkpoint": {
        "explain": "Explain an error message: the probable cause, and what to run next.",
        "migrate": "Write a checkpoint that a module loads strictly; --dry-run shows the plan.",
        "convert": "Write a checkpoint in another format, as a file that runs no code when loaded.",
        "verify": "Load a checkpoint, run its module on a real or simulated GPU, compare outputs.",
    },
    "Check and fix a module": {
        "audit": "Report state of a module that is not in its state_dict.",
        "fix": "Register the state that audit finds, in the source of the module.",
        "run": "Run a training command, and report what its loads and saves did.",
    },
    "Release": {
        "init": "Write the configuration: the module of each checkpoint in a project.",
        "lock": "Record a module's state contract in a lock file.",
        "gate": "Pass or fail a release by a policy, for CI.",
        "rule": "Explain a rule and how to fix its findings.",
    },
    "Versioned migrations": {
        "revision": "Draft a migration from what changed since the last revision.",
        "upgrade": "Write a checkpoint at a later revision.",
        "downgrade": "Write a checkpoint at an earlier revision.",
        "history": "Show the revisions of the project.",
        "current": "Show the revision that a checkpoint is at, and how that is known.",
        "check": "Check that every old file can still be upgraded to the last revision.",
    },
}
"""Heading of `ckptool --help` -> its commands, each with what it does."""
COMMANDS: Final = {
    name: summary for group in COMMAND_GROUPS.values() for name, summary in group.items()
}
_OPTION_COMMANDS: Final = {"help": "--help", "version": "--version"}
"""Commands of other tools that are options here: `ckptool help diff` is `ckptool diff --help`."""
REVISION_COMMANDS: Final = frozenset(COMMAND_GROUPS["Versioned migrations"])
"""Commands of a chain of migrations; their files are in the folder `revisions` of each layer."""
COULD_NOT_CHECK: Final = 2
_GC_THRESHOLD: Final = 2_000_000
"""New container objects after which the process searches for cycles among them."""
_EXTRA_ARGUMENT: Final = re.compile(r"Got unexpected extra argument \((?P<word>.*)\)", re.DOTALL)
"""Message of click for an argument too many."""
CLOSED_PIPE: Final = 128 + 13
"""Exit code of a shell for a command that SIGPIPE ends."""


class OneLineError(click.ClickException):
    """Usage error printed as one line that ends with the command to run for help."""

    exit_code = COULD_NOT_CHECK

    def __init__(self, error: click.UsageError, name: str, words: Iterable[str] = ()) -> None:
        from ckptool.cli.outputs.secrets import find_secrets, mask_secrets

        path = error.ctx.command_path if error.ctx else name
        message = " ".join(error.format_message().split()).rstrip(".")
        extra = _EXTRA_ARGUMENT.fullmatch(message)
        suggestion = suggest_module_option(extra["word"]) if extra else ""
        message = ": ".join(filter(None, (message, suggestion)))
        message = mask_secrets(mask_secrets(message), find_secrets(words))
        super().__init__(f"{path}: {message[:1].lower()}{message[1:]} (see `{path} --help`)")

    def show(self, file: IO[str] | None = None) -> None:
        from ckptool.phrases import make_printable

        click.echo(make_printable(self.message), file=file, err=file is None)


class LazyGroup(click.Group):
    """Click group that imports the file of a command only when it runs or shows its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        folder = "revisions." if cmd_name in REVISION_COMMANDS else ""
        command: click.Command = import_module(f"ckptool.cli.{folder}{cmd_name}").command
        # In a raw docstring, click's marker "\b" (no rewrapping) is a backslash and a letter.
        command.help = (command.help or "").replace("\\b\n", "\b\n")
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        width = max(map(len, COMMANDS))
        for heading, commands in COMMAND_GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from ckptool.cli.outputs.secrets import remember_secrets

        remember_secrets(ctx, args)
        command_name = args[0]
        if command_name not in COMMANDS and not command_name.startswith("-"):
            ctx.fail(f"no such command {command_name!r}: {_suggest_command(command_name)}")
        name, command, command_args = super().resolve_command(ctx, args)
        ctx.meta["ckptool.arguments"] = tuple(command_args)  # -o belongs to the --format before it
        return name, command, command_args

    def make_context(
        self, info_name: str | None, args: list[str], *positional: Any, **extra: Any
    ) -> click.Context:
        words = tuple(args)  # click empties the list
        if args and args[0] in _OPTION_COMMANDS:
            args = [*args[1:], _OPTION_COMMANDS[args[0]]]
        try:
            return super().make_context(info_name, args, *positional, **extra)
        except click.UsageError as error:
            raise _to_one_line_error(error, words) from error
        except (KeyboardInterrupt, Interrupted) as signal_error:
            _report_interrupt(signal_error)
        except BrokenPipeError:
            _end_at_closed_pipe()
        except OSError as error:  # --version, to a full disk
            click.echo(f"ckptool: standard output: {describe_os_error(error)}", err=True)
            raise Exit(COULD_NOT_CHECK) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            name = f"ckptool {ctx.invoked_subcommand or ''}".strip()
            raise _to_one_line_error(error, name=name) from error
        except CkptoolError as error:
            _report_error(ctx, *error.lines)
        except (KeyboardInterrupt, Interrupted) as signal_error:
            _report_interrupt(signal_error)
        except BrokenPipeError:
            _end_at_closed_pipe()
        except OSError as error:
            # A name that is too long, a folder that may not be searched, a full disk.
            name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
            _report_error(ctx, f"{name}: " * bool(name) + describe_os_error(error))
        except MemoryError:
            _report_error(ctx, "there is not enough memory")


def _suggest_command(word: str) -> str:
    """Return what was probably meant by a word that is no command."""
    if matches := get_close_matches(word, COMMANDS, n=1):
        return f"did you mean {matches[0]}?"
    if os.path.lexists(word):
        from ckptool.phrases import quote_shell

        verb = "run -- python" if word.endswith(".py") else "inspect"
        return f"did you mean ckptool {verb} {quote_shell(word)}?"
    return f"there are {', '.join(COMMANDS)}"


def _report_error(ctx: click.Context, *lines: str) -> NoReturn:
    """Print an error, with its traceback if it was asked for, and exit with status 2."""
    from ckptool.cli.output import format_one_line

    if ctx.obj and ctx.obj.get("trace"):
        import traceback

        from ckptool.cli.outputs.secrets import mask_secrets

        click.echo(mask_credentials(mask_secrets(traceback.format_exc())), err=True)
    text = "\n  ".join(map(format_one_line, lines))
    click.echo(f"ckptool: {text}", err=True)
    ctx.exit(COULD_NOT_CHECK)


def _report_interrupt(error: KeyboardInterrupt | Interrupted) -> NoReturn:
    from ckptool.cli.outputs.progress import close_progress

    name, code = "SIGINT", 130
    if isinstance(error, Interrupted):
        name, code = error.name, int(str(error.code))
    close_progress()
    click.echo(f"ckptool: ended by {name}", err=True)
    raise Exit(code)


def _end_at_closed_pipe() -> NoReturn:
    """Exit like a process that SIGPIPE ends: the reader has what it wanted, nothing was found."""
    # Discard the rest, or flushing at exit fails again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise Exit(CLOSED_PIPE)


def _to_one_line_error(
    error: click.UsageError, words: Iterable[str] = (), name: str = "ckptool"
) -> click.ClickException:
    """Return the error in one line; `name` is the command, where the error does not have it."""
    return error if isinstance(error, NoArgsIsHelpError) else OneLineError(error, name, words)


def _print_version(ctx: click.Context, _: click.Parameter, value: object) -> None:
    if not value:
        return
    from ckptool.versions import get_installed_version

    python_version = ".".join(map(str, sys.version_info[:3]))
    ckptool_version, torch_version = (
        get_installed_version("ckptool"),
        get_installed_version("torch"),
    )
    click.echo(f"ckptool {ckptool_version}, torch {torch_version}, Python {python_version}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-V", "--version", is_flag=True, is_eager=True, expose_value=False,
              callback=_print_version,
              help="Show the versions of ckptool, torch and Python, and exit.")  # fmt: skip
@click.pass_context
def main(ctx: click.Context) -> None:
    """Show what a PyTorch checkpoint contains and what it is missing.

    Exit codes: 0 passed; 1 something was found at or above --fail-on, or two things differ; 2 could
    not check, since a file cannot be read, a module cannot be built, or an option is wrong.
    """
    ctx.ensure_object(dict)


def run() -> NoReturn:
    """Run the command and exit with os._exit, which skips freeing objects.

    Freeing the descriptions of 100,000 tensors one by one takes 10% of the run time, and searching
    them for cycles 3%: the garbage collector begins with more objects than those.
    """
    gc.set_threshold(_GC_THRESHOLD)
    exit_code: object = 0
    try:
        # While modules were imported, an interrupt ended the process without a traceback.
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(prog_name="ckptool")
    except SystemExit as system_exit:
        exit_code = system_exit.code
    except KeyboardInterrupt:
        exit_code = 130
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # commands flush their output and report errors
            stream.flush()
    os._exit(exit_code if isinstance(exit_code, int) else 0)
