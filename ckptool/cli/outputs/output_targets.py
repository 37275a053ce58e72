"""--format and -o options in command-line order -> destinations of the reports, and the target.

The -o right behind a --format is that report's, in every command. Any other -o is, in a command
that writes a file of its own (`lock`, `migrate`), that file, and elsewhere a report whose format
its suffix says.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
from msgspec import Struct

from ckptool.cli.outputs.notices import announce_old_spelling
from ckptool.errors import UsageError

_STDOUT: Final = Path("-")
Destination = tuple[str, Path | None]

_FORMATS_BY_SUFFIX: Final = {
    ".sarif.json": "sarif",
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".sarif": "sarif",
    ".xml": "junit",
    ".txt": "table",
}


class Outputs(Struct, frozen=True):
    """Where a command writes."""

    destinations: tuple[Destination, ...]
    """Each format with its file; None, and `-o -`, is standard output."""
    target: Path | None = None
    """The file of the command itself; None in a command that writes reports only."""


def find_format(path: Path) -> str:
    """Return the format that the suffix of a file says, "" if it says none."""
    name = path.name.lower()
    return next((text for end, text in _FORMATS_BY_SUFFIX.items() if name.endswith(end)), "")


def resolve_outputs(
    ctx: click.Context,
    formats: Sequence[str],
    outputs: Sequence[Path],
    is_old_target: Callable[[click.Context, Path], bool] | None = None,
) -> Outputs:
    """Pair each format with its output file.

    Args:
        ctx: the running command.
        formats: the --format options.
        outputs: the -o options.
        is_old_target: whether a -o behind a --format is the target, as it was up to 0.1; None in a
            command that writes reports only.

    Raises:
        UsageError: an -o has no format, or two reports have the same destination.
    """
    pairs, loose_outputs = _pair_outputs(_read_option_order(ctx), formats, outputs)
    if is_old_target is None:
        return Outputs(_check_destinations((*_add_loose_outputs(pairs, loose_outputs),)))
    if not loose_outputs and len(outputs) == 1 and is_old_target(ctx, outputs[0]):
        new_spelling = f"-o {outputs[0]} --format {formats[-1]}"
        announce_old_spelling(f"--format {formats[-1]} -o {outputs[0]}", new_spelling)
        pairs, loose_outputs = [(name, None) for name, _ in pairs], [outputs[0]]
    if len(loose_outputs) > 1:
        names = " and ".join(f"-o {path}" for path in loose_outputs)
        raise UsageError(f"{names}: one file is written; the -o of a report follows its --format")
    target = loose_outputs[0] if loose_outputs else None
    if target == _STDOUT:
        reason = "a report goes to standard output, this does not: name a file"
        raise UsageError(f"-o -: {reason}, or ./- for a file of that name")
    return Outputs(_check_destinations(tuple(pairs) or (("table", None),)), target)


def _read_option_order(ctx: click.Context) -> list[str]:
    """Return "formats" and "outputs" in command-line order, once per occurrence."""
    arguments = list(ctx.meta.get("ckptool.arguments", ()))
    _, _, parameters = ctx.command.make_parser(ctx).parse_args(args=arguments)
    return [parameter.name for parameter in parameters if parameter.name in {"formats", "outputs"}]


def _pair_outputs(
    option_names: Sequence[str], formats: Sequence[str], outputs: Sequence[Path]
) -> tuple[list[Destination], list[Path]]:
    """Return each format with the -o right behind it, and the other -o."""
    format_names, files = iter(formats), iter(outputs)
    pairs: list[Destination] = []
    loose_outputs: list[Path] = []
    previous_name = ""
    for option_name in option_names:
        if option_name == "formats":
            pairs.append((next(format_names), None))
        elif previous_name == "formats":
            path = next(files)
            pairs[-1] = pairs[-1][0], None if path == _STDOUT else path
        else:
            loose_outputs.append(next(files))
        previous_name = option_name
    return pairs, loose_outputs


def _add_loose_outputs(
    pairs: Sequence[Destination], loose_outputs: Sequence[Path]
) -> list[Destination]:
    """Return the reports of a command: an -o without a --format takes that of its suffix.

    Raises:
        UsageError: its suffix says none, and there are formats that it could be for.
    """
    if not pairs and not loose_outputs:
        return [("table", None)]
    if len(pairs) == len(loose_outputs) == 1 and pairs[0][1] is None:
        path = loose_outputs[0]
        return [(pairs[0][0], None if path == _STDOUT else path)]
    reports = list(pairs)
    for path in loose_outputs:
        format_ = find_format(path)
        if not format_ and (pairs or len(loose_outputs) > 1):
            raise UsageError(f"-o {path}: of several, each follows the --format that it is for")
        reports.append((format_ or "table", None if path == _STDOUT else path))
    return reports


def _check_destinations(destinations: tuple[Destination, ...]) -> tuple[Destination, ...]:
    """Return `destinations` if no two are the same.

    Raises:
        UsageError: two reports would go to standard output, or to one file.
    """
    stdout_formats = [format_ for format_, path in destinations if path is None]
    if len(stdout_formats) > 1:
        names = " and ".join(f"--format {name}" for name in stdout_formats)
        raise UsageError(f"{names} would both go to standard output: give all but one its own -o")
    files = [path for _, path in destinations if path is not None]
    for path in files:
        if files.count(path) > 1:
            raise UsageError(f"-o {path}: two reports cannot be written to the same file")
    return destinations
