"""`ckptool explain`."""

import sys
from pathlib import Path
from typing import Final

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import module_name_options
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.errors import UsageError
from ckptool.phrases import quote_path
from ckptool.policy import Policy
from ckptool.rules.known_errors.log_text import MAX_CHARS

_BINARY_MAGICS: Final = frozenset({b"PK", b"\x80\x02", b"\x1f\x8b"})
"""First bytes of a zip archive, a pickle as torch.save writes it, and a gzip file."""


@click.command("explain", cls=GroupedCommand)
@click.argument("log", required=False, metavar="[FILE|TEXT]")
@click.option(
    "--checkpoint", metavar="PATH", help="The file that was loaded.  [default: as in the traceback]"
)
@module_name_options
@report_options
def command(
    ctx: click.Context,
    log: str | None,
    *,
    module: str | None,
    kwargs: dict[str, object] | None,
    checkpoint: str | None,
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001
) -> None:
    r"""Explain an error message: the probable cause, and what to run next.

    FILE is a traceback or a log, and TEXT the message itself, of several words; without either, or
    with `-`, standard input is read. With -m and -k, the commands to run next are complete; no
    module is imported and no checkpoint is opened. Exits 2 if there is no known error in it.

    \b
    python train.py 2>&1 | ckptool explain
    ckptool explain train.log -m package.module:Name
    ckptool explain "Missing key(s) in state_dict: ..."
    """
    text, source = _read_argument(log)
    report = api.explain(
        text, source, module=module or "", kwargs=kwargs, checkpoint=checkpoint or ""
    )
    out.write_report(report)
    if report.exit_code == 2 and None not in dict(out.destinations).values():
        click.echo(f"ckptool: {report.verdict}", err=True)
    ctx.exit(report.exit_code)


def _read_argument(log: str | None) -> tuple[str, str]:
    """Return the text to explain, and its path: "-" of standard input, "" of a message."""
    if log is None or log == "-":
        if sys.stdin.isatty():
            click.echo("ckptool: paste the traceback, then Ctrl-D (Ctrl-Z on Windows)", err=True)
        return _read_stdin(), "-"
    if len(log.split()) > 1 and not _is_file_name(log):
        return log, ""
    return _read_log(Path(log)), log


def _is_file_name(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a name that is too long, or that has a null
        return False


def _read_stdin() -> str:
    stream = getattr(sys.stdin, "buffer", None)
    return _decode(stream.read()) if stream is not None else sys.stdin.read()


def _read_log(path: Path) -> str:
    """Return the text of a log: of a very long one the first and the last part, in one piece."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the file of a log")
    with path.open("rb") as stream:
        if stream.read(2) in _BINARY_MAGICS:
            command = quote_path(str(path))
            raise UsageError(f"{path}: is not a log: ckptool inspect {command} shows what it is")
        size = stream.seek(0, 2)
        stream.seek(0)
        if size <= 4 * MAX_CHARS:
            return _decode(stream.read())
        click.echo(f"ckptool: {path}: {size:,} bytes: its first and last part are read", err=True)
        head = stream.read(MAX_CHARS)
        stream.seek(size - 2 * MAX_CHARS)
        return _decode(head + b"\n" + stream.read())


def _decode(content: bytes) -> str:
    """Decode a log: UTF-16 as PowerShell's `>` writes it, else UTF-8 with odd bytes escaped."""
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return content.decode("utf-16", "replace")
    return content.decode("utf-8-sig", "backslashreplace")
