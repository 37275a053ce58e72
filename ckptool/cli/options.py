"""Click options shared by the commands, and the output of reports."""

import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from ckptool.cli.arguments import parse_kwargs, parse_limits
from ckptool.cli.outputs import Destination, targets
from ckptool.config import load_config, read_config
from ckptool.errors import UsageError, WriteError
from ckptool.locations import Location, locate, masked
from ckptool.policy import LEVELS
from ckptool.policy.effective import Options, policy_of
from ckptool.render import FORMATS, Style, render
from ckptool.render.text import printable
from ckptool.report import AnyReport

Command = Callable[..., Any]

_PRINTED = 1 << 20
"""Characters per write to standard output."""


class _Checkpoint(click.ParamType[Location]):
    """Click type of a local or remote checkpoint; converts to `Location`."""

    name = "path"

    def convert(self, value: Any, param: object, ctx: object) -> Location:  # noqa: ARG002
        return locate(value)

    def shell_complete(
        self,
        ctx: object,  # noqa: ARG002
        param: object,  # noqa: ARG002
        incomplete: str,
    ) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class _Written(click.Path):
    """Click type of a local output file or folder; remote locations are usage errors."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: object,  # noqa: ARG002
    ) -> Path:
        from ckptool.api.target import written_here

        try:
            return written_here(value)
        except UsageError as error:
            option = param.opts[0] if param else ""
            raise UsageError(f"{option} {error}".strip()) from error


CHECKPOINT = _Checkpoint()
WRITTEN = _Written()


class Output(Struct, frozen=True):
    """Formats, destinations and verbosity of a report."""

    targets: tuple[Destination, ...]
    """Each format with its file; None is standard output, for at most one format."""
    color: str
    quiet: bool
    verbose: bool

    @property
    def formats(self) -> frozenset[str]:
        return frozenset(format_ for format_, _ in self.targets)

    @property
    def pictures(self) -> bool:
        """Whether a format draws pictures; otherwise their values are not read."""
        return "html" in self.formats

    def emit(self, report: AnyReport) -> None:
        """Write the report to its files and to standard output.

        With --format github, also append it as Markdown to $GITHUB_STEP_SUMMARY.

        Raises:
            WriteError: a file cannot be written.
        """
        for format_, path in self.targets:
            _put(render(format_, report, self._style(path)), path)
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary and "github" in self.formats:
            _append(Path(summary), render("markdown", report, Style()) + "\n")

    def text(self, text: str) -> None:
        """Write a text to the destinations of the report.

        Raises:
            WriteError: a file cannot be written.
        """
        for _, path in self.targets:
            _put(text, path)

    def _style(self, path: Path | None) -> Style:
        terminal = path is None and sys.stdout.isatty()
        return Style(
            width=_width(terminal=terminal),
            color=path is None and _colored(self.color, terminal=terminal),
            unicode=path is not None or _draws(),
            verbosity=self.verbose - self.quiet,
            root=Path.cwd(),
        )


def _width(*, terminal: bool) -> int | None:
    """Return the width in columns: $COLUMNS or the terminal's; None if neither is known."""
    wanted = os.environ.get("COLUMNS", "").isdigit()
    if not (terminal or wanted):
        return None
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _put(text: str, path: Path | None) -> None:
    if path is None:
        _print(text)
    else:
        _write(path, text + "\n")


def _write(path: Path, text: str) -> None:
    """Write a report: atomically to a regular file, directly to a pipe or device."""
    from ckptool.formats.atomic import failing, write_file

    content = text.encode()
    if not path.exists() or path.is_file():
        write_file(path, content, force=True)
        return
    with failing(path):
        path.write_bytes(content)


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as summary:
            summary.write(text)
    except OSError as error:
        raise WriteError(f"GITHUB_STEP_SUMMARY {path}: {error.strerror or error}") from error


def _print(text: str) -> None:
    try:
        # In chunks: encoding and writing hold two more copies of each.
        for start in range(0, len(text), _PRINTED):
            click.echo(_encodable(text[start : start + _PRINTED]), nl=False, color=True)
        click.echo()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python flushes the unwritten rest again at exit, which would fail again: discard it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise WriteError(f"standard output: {error.strerror or error}") from error


def _encodable(text: str) -> str:
    """Escape the characters that the encoding of standard output lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _colored(choice: str, *, terminal: bool) -> bool:
    """Whether to colour: by the option, then NO_COLOR, FORCE_COLOR and TERM."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return terminal and os.environ.get("TERM") != "dumb"


def _draws() -> bool:
    """Whether standard output encodes Unicode and the terminal is not TERM=dumb."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return encoding.startswith("utf") and os.environ.get("TERM") != "dumb"


def one_line(text: str) -> str:
    """Return an error message as one printable line without credentials."""
    return printable(masked(" ".join(text.splitlines())))


def report_options(function: Command) -> Command:
    """Add the report options; the command receives `out: ReportOutput` and `policy: Policy`."""
    return _with_options(_reporting(function, has_output=True), _REPORT_OPTIONS)


def screen_options(function: Command) -> Command:
    """Add the options of `report_options` except -o, which the command uses for another file."""
    return _with_options(
        _reporting(function, has_output=False),
        tuple(o for o in _REPORT_OPTIONS if o is not _OUTPUT_OPTION),
    )


def _reporting(function: Command, *, has_output: bool) -> Command:
    @wraps(function)
    @click.pass_context
    def command(
        ctx: click.Context,
        /,
        *args: object,
        formats: tuple[str, ...],
        color: str,
        quiet: bool,
        verbose: bool,
        select: tuple[str, ...],
        ignore: tuple[str, ...],
        fail_on: str | None,
        outputs: tuple[Path, ...] = (),
        policy_file: Path | None = None,
        **options: object,
    ) -> object:
        ctx.obj["trace"] = verbose
        out = Output(targets(ctx, formats, outputs), color, quiet, verbose)
        _refuse_read(out, options.values())
        if ("html", None) in out.targets and sys.stdout.isatty():
            raise UsageError(
                "--format html is a page for a browser, not for a terminal: write it to a file, "
                "with > report.html" + (" or -o report.html" if has_output else "")
            )
        config = load_config(Path.cwd()) if policy_file is None else read_config(policy_file)
        said = Options(_codes(select), _codes(ignore), fail_on)
        ctx.obj |= {"config": config, "options": said}
        policy = policy_of(config, said)
        return function(ctx, *args, out=out, policy=policy, **options)

    return command


def _refuse_read(out: Output, given: Iterable[object]) -> None:
    """Raise UsageError if a report would overwrite a file that the command reads."""
    several = (one if isinstance(one, tuple) else (one,) for one in given)
    read = [path for paths in several for path in paths if isinstance(path, Path) and path.exists()]
    for _, path in out.targets:
        if path is not None and path.exists() and any(map(path.samefile, read)):
            raise UsageError(f"-o {path}: is read by this command, and its report would replace it")


def module_options(function: Command) -> Command:
    """Add -m, -k and --kwargs; the command receives `module` and `kwargs`, None if not given."""

    @wraps(function)
    def command(
        *args: object,
        kwargs_pairs: tuple[str, ...],
        kwargs_file: Path | None,
        **options: object,
    ) -> object:
        kwargs = parse_kwargs(kwargs_pairs, kwargs_file)
        return function(*args, kwargs=kwargs or None, **options)

    return _with_options(command, _MODULE_OPTIONS)


def limit_options(function: Command) -> Command:
    """Add --deep and --limit; the command receives `limits: Limits`."""

    @wraps(function)
    def command(
        *args: object, deep: bool, limit_pairs: tuple[str, ...], **options: object
    ) -> object:
        return function(*args, limits=parse_limits(limit_pairs, deep=deep), **options)

    return _with_options(command, _LIMIT_OPTIONS)


def input_options(function: Command) -> Command:
    """Add --input and --inputs; the command receives `inputs`, None if neither is given."""

    @wraps(function)
    def command(
        *args: object,
        input_words: tuple[str, ...],
        inputs_from: str | None,
        **options: object,
    ) -> object:
        if input_words and inputs_from:
            raise UsageError("--input and --inputs both say what forward takes: give one of them")
        given = (inputs_from,) if inputs_from else input_words
        return function(*args, inputs=given or None, **options)

    return _with_options(command, _INPUT_OPTIONS)


def _codes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Split comma-separated rule codes."""
    return tuple(code.strip() for text in texts for code in text.split(",") if code.strip())


def _with_options(function: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        function = option(function)
    return function


_OUTPUT_OPTION = click.option(
    "-o",
    "--output",
    "outputs",
    type=WRITTEN,
    multiple=True,
    help="Write the report of the --format before it here.",
)
_REPORT_OPTIONS = (
    click.option(
        "--format",
        "formats",
        type=click.Choice(FORMATS),
        multiple=True,
        help="Several may be given, each but one with its -o.  [default: table]",
    ),
    _OUTPUT_OPTION,
    click.option(
        "--fail-on",
        type=click.Choice([*LEVELS, "never"]),
        help="Exit 1 from this level on.  [default: error]",
    ),
    click.option(
        "--select", multiple=True, metavar="CODES", help="Report these rules or families only."
    ),
    click.option(
        "--ignore", multiple=True, metavar="CODES", help="Leave these rules or families out."
    ),
    click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print the verdict only."),
    click.option("-v", "--verbose", is_flag=True, help="Print everything; a traceback on errors."),
)
_LIMIT_OPTIONS = (
    click.option("--deep", is_flag=True, help="Compare every checksum, whatever the size."),
    click.option(
        "--limit",
        "limit_pairs",
        multiple=True,
        metavar="NAME=NUMBER",
        help="Change a bound on what a file may cost, for example pickle-bytes=1000000.",
    ),
)
_INPUT_OPTIONS = (
    click.option(
        "--input",
        "input_words",
        multiple=True,
        metavar="[NAME=]VALUE",
        help='What forward takes: "float32[2,6,3]", "int64[2,8]<1000" or a safetensors file.',
    ),
    click.option(
        "--inputs",
        "inputs_from",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="A function that gives what forward takes.",
    ),
)
_MODULE_OPTIONS = (
    click.option(
        "-m", "--module", metavar="PACKAGE.MODULE:NAME", help="A class, a factory or an instance."
    ),
    click.option(
        "-k",
        "kwargs_pairs",
        multiple=True,
        metavar="NAME=VALUE",
        help="A constructor argument, as a Python literal.",
    ),
    click.option(
        "--kwargs",
        "kwargs_file",
        type=click.Path(path_type=Path),
        help="Constructor arguments, in a JSON or TOML file.",
    ),
)
