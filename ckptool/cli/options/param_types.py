"""Click types of checkpoints and output files, and decorators that add several options."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ckptool.errors import UsageError
from ckptool.locations import Location, parse_location

CommandFunction = Callable[..., Any]


class _CheckpointParam(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """Click type of a local or remote checkpoint; converts to `Location`."""

    name = "path"

    def convert(self, value: Any, param: object, ctx: object) -> Location:  # noqa: ARG002
        if value == "":
            raise UsageError("a path is empty: is a variable of the shell not set?")
        return parse_location(value)

    def shell_complete(
        self,
        ctx: object,  # noqa: ARG002
        param: object,  # noqa: ARG002
        incomplete: str,
    ) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class _OutputPathParam(click.Path):
    """Click type of a local output file or folder; remote locations are usage errors."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: object,  # noqa: ARG002
    ) -> Path:
        from ckptool.commands.sources.checkpoint_paths import require_local_path

        if str(value) == "-" and param is not None and param.name != "outputs":
            reason = "only a report can go to standard output: give a file"
            raise UsageError(f"{param.opts[0]} -: {reason}, or ./- for a file of that name")
        try:
            return require_local_path(value)
        except UsageError as error:
            option = param.opts[0] if param else ""
            raise UsageError(f"{option} {error}".strip()) from error


CHECKPOINT_PATH = _CheckpointParam()
OUTPUT_PATH = _OutputPathParam()


def add_options(
    function: CommandFunction, options: tuple[Callable[[CommandFunction], CommandFunction], ...]
) -> CommandFunction:
    for option in reversed(options):
        function = option(function)
    return function
