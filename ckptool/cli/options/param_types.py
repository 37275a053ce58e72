"""Click types of checkpoints and output files, and decorators that add several options."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ckptool.errors import UsageError, describe_os_error
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


class _InputPathParam(click.Path):
    """Click type of a local file that is read, or of a folder: it exists, and may be read."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: object,  # noqa: ARG002
    ) -> Path:
        location = parse_location(value) if value else Path(value)
        path = location if isinstance(location, Path) else None
        reason = "is remote: download it first" if path is None else self._find_fault(path)
        if path is None or reason:
            option = param.opts[0] if param is not None and param.opts[0][0] == "-" else ""
            raise UsageError(f"{option} {location}: {reason}".strip())
        return path

    def _find_fault(self, path: Path) -> str:
        """Return why a path cannot be read, "" if it can."""
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError as error:
            reason = describe_os_error(error, path)
            return reason if self.file_okay else reason.replace("no such file", "no such folder")
        except (OSError, ValueError) as error:
            return describe_os_error(error, path)
        if not (self.dir_okay if is_folder else self.file_okay):
            actual, expected = ("folder", "file") if is_folder else ("file", "folder")
            return f"is a {actual}, and a {expected} is expected"
        mode = os.R_OK | (os.X_OK if is_folder else 0)
        return "" if os.access(path, mode) else os.strerror(errno.EACCES)


CHECKPOINT_PATH = _CheckpointParam()
OUTPUT_PATH = _OutputPathParam()
INPUT_FILE = _InputPathParam(dir_okay=False)
INPUT_FOLDER = _InputPathParam(file_okay=False)
INPUT_PATH = _InputPathParam()


def add_options(
    function: CommandFunction, options: tuple[Callable[[CommandFunction], CommandFunction], ...]
) -> CommandFunction:
    for option in reversed(options):
        function = option(function)
    return function
