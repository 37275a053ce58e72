"""--format and -o options in command-line order -> destinations of the reports."""

from collections.abc import Sequence
from pathlib import Path

import click

from ckptool.errors import UsageError

Destination = tuple[str, Path | None]


def targets(
    ctx: click.Context, formats: Sequence[str], outputs: Sequence[Path]
) -> tuple[Destination, ...]:
    """Pair each format with its output file; None is standard output.

    Raises:
        UsageError: an -o has no --format, or two reports have the same destination.
    """
    if len(formats) < 2 and len(outputs) < 2:
        return ((formats[0] if formats else "table", outputs[0] if outputs else None),)
    if not any(one.name == "outputs" for one in ctx.command.params):
        raise UsageError("--format: one report is printed; -o names what the command writes")
    found = _paired(_order(ctx), formats, outputs)
    plain = [format_ for format_, path in found if path is None]
    if len(plain) > 1:
        names = " and ".join(f"--format {name}" for name in plain)
        raise UsageError(f"{names} would both go to standard output: give all but one its own -o")
    files = [path for _, path in found if path is not None]
    for path in files:
        if files.count(path) > 1:
            raise UsageError(f"-o {path}: two reports cannot be written to one file")
    return found


def _order(ctx: click.Context) -> list[str]:
    """Return "formats" and "outputs" in command-line order, once per occurrence."""
    arguments = list(ctx.meta.get("ckptool.arguments", ()))
    _, _, order = ctx.command.make_parser(ctx).parse_args(args=arguments)
    return [one.name for one in order if one.name in {"formats", "outputs"}]


def _paired(
    order: Sequence[str], formats: Sequence[str], outputs: Sequence[Path]
) -> tuple[Destination, ...]:
    names, files = iter(formats), iter(outputs)
    found: list[Destination] = []
    for one in order:
        if one == "formats":
            found.append((next(names), None))
            continue
        path = next(files)
        if not found or found[-1][1] is not None:
            raise UsageError(f"-o {path}: of several, each follows the --format that it is for")
        found[-1] = found[-1][0], path
    return tuple(found)
