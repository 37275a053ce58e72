"""--format and -o options in command-line order -> destinations of the reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from ckptool.errors import UsageError

_STDOUT: Final = Path("-")
Destination = tuple[str, Path | None]


def resolve_destinations(
    ctx: click.Context, formats: Sequence[str], outputs: Sequence[Path]
) -> tuple[Destination, ...]:
    """Pair each format with its output file; None, and `-o -`, is standard output.

    Raises:
        UsageError: an -o has no --format, or two reports have the same destination.
    """
    if len(formats) < 2 and len(outputs) < 2:
        path = outputs[0] if outputs and outputs[0] != _STDOUT else None
        return ((formats[0] if formats else "table", path),)
    if not any(parameter.name == "outputs" for parameter in ctx.command.params):
        raise UsageError("--format: only one report can be printed; -o is the command's own output")
    destinations = _pair_outputs(_read_option_order(ctx), formats, outputs)
    stdout_formats = [format_ for format_, path in destinations if path is None]
    if len(stdout_formats) > 1:
        names = " and ".join(f"--format {name}" for name in stdout_formats)
        raise UsageError(
            f"{names} would both go to standard output: give every one but the last its own -o"
        )
    files = [path for _, path in destinations if path is not None]
    for path in files:
        if files.count(path) > 1:
            raise UsageError(f"-o {path}: two reports cannot be written to the same file")
    return destinations


def _read_option_order(ctx: click.Context) -> list[str]:
    """Return "formats" and "outputs" in command-line order, once per occurrence."""
    arguments = list(ctx.meta.get("ckptool.arguments", ()))
    _, _, parameters = ctx.command.make_parser(ctx).parse_args(args=arguments)
    return [parameter.name for parameter in parameters if parameter.name in {"formats", "outputs"}]


def _pair_outputs(
    option_names: Sequence[str], formats: Sequence[str], outputs: Sequence[Path]
) -> tuple[Destination, ...]:
    format_names, files = iter(formats), iter(outputs)
    destinations: list[Destination] = []
    is_paired = False
    for option_name in option_names:
        if option_name == "formats":
            destinations.append((next(format_names), None))
            is_paired = False
            continue
        path = next(files)
        if not destinations or destinations[-1][1] is not None or is_paired:
            raise UsageError(f"-o {path}: of several, each follows the --format that it is for")
        destinations[-1] = destinations[-1][0], None if path == _STDOUT else path
        is_paired = True
    return tuple(destinations)
