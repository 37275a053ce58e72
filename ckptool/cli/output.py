"""Report -> files and the terminal, in the formats that the options name."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click
from msgspec import Struct

from ckptool.cli.outputs.output_guard import TEXT_MARK
from ckptool.cli.outputs.output_targets import Destination
from ckptool.cli.outputs.progress import close_progress
from ckptool.cli.outputs.secrets import mask_secrets
from ckptool.commands.worker.worker import close_worker
from ckptool.errors import WriteError, describe_os_error
from ckptool.formats.files.atomic import translate_os_errors
from ckptool.formats.files.output_group import commit_gathered, write_file
from ckptool.locations import mask_credentials
from ckptool.phrases import cut_middle, make_printable
from ckptool.render import RenderOptions, render

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_TEXT_MARKS: Final = {
    "table": f"\n\n({TEXT_MARK})",
    "markdown": f"\n\n<!-- {TEXT_MARK} -->",
    "github": f"\n::debug::{TEXT_MARK}",
}
"""Last lines of files: the next run may replace a file that has one."""
_MAX_ERROR_CHARS: Final = 4000
_PRINT_CHUNK_CHARS = 1 << 20
"""Characters per write to standard output."""


class ReportOutput(Struct, frozen=True):
    """Formats, destinations and verbosity of a report."""

    destinations: tuple[Destination, ...]
    """Each format with its file; None is standard output, for at most one format."""
    color: str
    quiet: bool
    verbose: bool

    @property
    def formats(self) -> frozenset[str]:
        return frozenset(format_ for format_, _ in self.destinations)

    @property
    def draws_pictures(self) -> bool:
        """Whether a format draws pictures; otherwise their values are not read."""
        return "html" in self.formats

    def write_report(self, report: "AnyReport") -> None:
        """Write the report to its files and to standard output.

        With --format github, also append it as Markdown to $GITHUB_STEP_SUMMARY. What code of the
        user printed is shown before.

        Raises:
            WriteError: a file cannot be written.
        """
        close_worker()
        close_progress()
        self._write_texts(
            (
                render(format_, report, self._build_render_options(path))
                + (_TEXT_MARKS.get(format_, "") if _is_file(path) else ""),
                path,
            )
            for format_, path in self.destinations
        )
        summary_path = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary_path and "github" in self.formats:
            _append_summary(
                Path(summary_path), mask_secrets(render("markdown", report, RenderOptions())) + "\n"
            )

    def finish(self, report: "AnyReport", errors: Iterable[str] = ()) -> NoReturn:
        """Write the report, then `errors` to standard error, and end the command.

        Raises:
            WriteError: a file cannot be written.
            click.exceptions.Exit: always, with the exit code of the report.
        """
        self.write_report(report)
        end_command(report.exit_code, errors)

    def write_text(self, text: str) -> None:
        """Write a text to the destinations of the report.

        Raises:
            WriteError: a file cannot be written.
        """
        self._write_texts((text, path) for _, path in self.destinations)

    def _write_texts(self, texts: Iterable[tuple[str, Path | None]]) -> None:
        """Write the files, have all files of the command appear, and print the rest.

        Raises:
            WriteError: a file cannot be written; then none is.
        """
        printed_texts: list[tuple[str, Path | None]] = []
        for text, path in texts:
            if path is not None and _is_file(path):
                write_file(path, f"{mask_secrets(text)}\n".encode(), force=True)
            else:
                printed_texts.append((mask_secrets(text), path))
        commit_gathered()
        for text, path in printed_texts:
            if path is None:
                _print_text(text)
            else:
                with translate_os_errors(path):
                    path.write_bytes(f"{text}\n".encode())

    def _build_render_options(self, path: Path | None) -> RenderOptions:
        is_terminal = path is None and sys.stdout.isatty()
        return RenderOptions(
            width=_detect_width(is_terminal=is_terminal),
            color=path is None and _should_color(self.color, is_terminal=is_terminal),
            unicode=path is not None or _supports_unicode(),
            verbosity=self.verbose - (self.quiet and path is None),
            root=Path.cwd(),
        )


def _detect_width(*, is_terminal: bool) -> int | None:
    """Return the width in columns: $COLUMNS or the terminal's; None if neither is known."""
    has_columns = os.environ.get("COLUMNS", "").isdigit()
    if not (is_terminal or has_columns):
        return None
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _is_file(path: Path | None) -> bool:
    """Whether a report to `path` is a regular file: not standard output, a pipe or a device."""
    return path is not None and (path.is_file() or not path.exists())


def _append_summary(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as summary_file:
            summary_file.write(text)
    except OSError as error:
        raise WriteError(f"GITHUB_STEP_SUMMARY {path}: {describe_os_error(error)}") from error


def _print_text(text: str) -> None:
    try:
        # In chunks: encoding and writing hold two more copies of each.
        for start in range(0, len(text), _PRINT_CHUNK_CHARS):
            click.echo(
                _escape_unencodable(text[start : start + _PRINT_CHUNK_CHARS]), nl=False, color=True
            )
        click.echo()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python flushes the unwritten rest again at exit, which would fail again: discard it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise WriteError(f"standard output: {describe_os_error(error)}") from error


def _escape_unencodable(text: str) -> str:
    """Escape the characters that the encoding of standard output lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _should_color(choice: str, *, is_terminal: bool) -> bool:
    """Whether to colour: by the option, then NO_COLOR, FORCE_COLOR and TERM."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal and os.environ.get("TERM") != "dumb"


def _supports_unicode() -> bool:
    """Whether standard output encodes Unicode and the terminal is not TERM=dumb."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return encoding.startswith("utf") and os.environ.get("TERM") != "dumb"


def end_command(exit_code: int, errors: Iterable[str] = ()) -> NoReturn:
    """Print `errors` to standard error, one line each, and end the command.

    Raises:
        click.exceptions.Exit: always, with `exit_code`.
    """
    for error in errors:
        click.echo(f"ckptool: {format_one_line(error)}", err=True)
    click.get_current_context().exit(exit_code)


def format_one_line(text: str) -> str:
    """Return an error message as one printable line without credentials, and of bounded length."""
    line = mask_secrets(mask_credentials(" ".join(map(str.strip, text.splitlines()))))
    return make_printable(cut_middle(line, _MAX_ERROR_CHARS))
