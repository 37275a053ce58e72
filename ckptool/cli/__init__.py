"""Command line `ckptool`: options -> api -> render -> exit code, without logic of its own."""

import os
import sys
import warnings
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from typing import IO, Any, Final, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from ckptool.errors import CkptoolError

COMMANDS: Final = {
    "audit": "Report everything a module holds that a state_dict does not.",
    "diff": "Compare a checkpoint with a module, or with another checkpoint.",
    "digest": "Name the content of checkpoints, whatever the container, and check it.",
    "gate": "Pass or fail a release by a policy, for CI.",
    "inspect": "Describe checkpoints without loading or executing anything.",
    "lock": "Write down what a module or a checkpoint promises, for later releases.",
    "merge": "Put the parts of a diff that several machines made together.",
    "migrate": "Write a checkpoint that the new module loads strictly; --dry-run shows the plan.",
    "rule": "Say what a rule means and how to fix what it finds.",
    "verify": "Load a checkpoint, run its module on a GPU or a simulated one, and compare.",
}
COULD_NOT_CHECK: Final = 2


class OneLineError(click.ClickException):
    """Usage error printed as one line that ends with the command to run for help."""

    exit_code = COULD_NOT_CHECK

    def __init__(self, error: click.UsageError, name: str) -> None:
        path = error.ctx.command_path if error.ctx else name
        message = " ".join(error.format_message().split()).rstrip(".")
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
        command: click.Command = import_module(f"ckptool.cli.{cmd_name}").command
        # In a raw docstring, click's marker "\b" (no rewrapping) is a backslash and a letter.
        command.help = (command.help or "").replace("\\b\n", "\b\n")
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command_name = args[0]
        if command_name not in COMMANDS and not command_name.startswith("-"):
            matches = get_close_matches(command_name, COMMANDS, n=1)
            suggestion = (
                f"did you mean {matches[0]}?" if matches else f"there are {', '.join(COMMANDS)}"
            )
            ctx.fail(f"no such command {command_name!r}: {suggestion}")
        name, command, command_args = super().resolve_command(ctx, args)
        ctx.meta["ckptool.arguments"] = tuple(command_args)  # -o belongs to the --format before it
        return name, command, command_args

    def make_context(
        self, info_name: str | None, args: list[str], *positional: Any, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, *positional, **extra)
        except click.UsageError as error:
            raise _to_one_line_error(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _to_one_line_error(error) from error
        except CkptoolError as error:
            if ctx.obj and ctx.obj.get("trace"):
                import traceback

                traceback.print_exc()
            from ckptool.cli.output import format_one_line

            text = "\n  ".join(map(format_one_line, error.lines))
            click.echo(f"ckptool: {text}", err=True)
            ctx.exit(COULD_NOT_CHECK)
        except KeyboardInterrupt:
            click.echo("ckptool: ended by SIGINT", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # The reader closed the pipe. Discard the rest, or flushing at exit fails again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


def _to_one_line_error(error: click.UsageError) -> click.ClickException:
    return error if isinstance(error, NoArgsIsHelpError) else OneLineError(error, "ckptool")


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
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Show the versions of ckptool, torch and Python, and exit.")  # fmt: skip
@click.pass_context
def main(ctx: click.Context) -> None:
    """Tell what a PyTorch checkpoint really holds and what it silently lost.

    Exit codes: 0 passed; 1 something was found at or above --fail-on, or two things differ; 2 could
    not check, since a file cannot be read, a module cannot be built, or an option is wrong.
    """
    ctx.ensure_object(dict)
    # On import torch warns if numpy is missing; numpy is optional for torch and for ckptool.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)


def run() -> NoReturn:
    """Run the command and exit with os._exit, which skips freeing objects.

    Freeing the descriptions of 100,000 tensors one by one takes 10% of the run time.
    """
    exit_code: object = 0
    try:
        main(prog_name="ckptool")
    except SystemExit as system_exit:
        exit_code = system_exit.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # commands flush their output and report errors
            stream.flush()
    os._exit(exit_code if isinstance(exit_code, int) else 0)
