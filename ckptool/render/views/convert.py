"""ConvertReport -> blocks."""

from collections.abc import Iterator

from ckptool.phrases import format_size, pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    SIZE,
    WHY,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    TableBlock,
    VerdictBlock,
    build_table,
    fold_unless_verbose,
)
from ckptool.reports.convert import ConversionReport, ConvertReport, LeftOutReport


def build_blocks(report: ConvertReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    if len(report.conversions) + len(report.errors) == 1:
        for conversion in report.conversions:
            yield from _build_conversion_blocks(conversion, options)
        return
    rows = [_build_summary_row(conversion) for conversion in report.conversions]
    if rows:
        columns = (
            "source",
            "target",
            Column("tensors", ColumnKind.NUMBER),
            SIZE,
            Column("dropped", ColumnKind.PROSE),
        )
        yield build_table("Converted", columns, rows, options)
    if report.errors:
        yield LinesBlock(tuple(f"not converted: {error}" for error in report.errors))
    if options.verbosity > 0:
        for conversion in report.conversions:
            yield from _build_conversion_blocks(conversion, options)


def _build_conversion_blocks(
    conversion: ConversionReport, options: RenderOptions
) -> Iterator[Block]:
    location = f" at `{conversion.at}`" if conversion.at else ""
    checks = [
        f"checked: {check.name}: {check.reason}"
        for check in conversion.checks
        if check.result == "passed"
    ]
    steps = [
        f"{step.op}: {step.before} -> {step.after}"
        + (f" (loses {step.loses})" if step.loses else "")
        for step in conversion.steps
    ]
    yield LinesBlock(
        (
            f"{conversion.source}{location} -> {conversion.target or 'nothing written'}",
            *steps,
            *checks,
            *conversion.notes,
        )
    )
    if conversion.left_out:
        yield _build_places_table("Dropped", conversion.left_out, options)
    if conversion.changed:
        yield _build_places_table("Stored as plain data", conversion.changed, options)


def _build_summary_row(conversion: ConversionReport) -> tuple[str, ...]:
    return (
        conversion.source,
        conversion.target or "nothing written",
        f"{conversion.tensors:,}",
        format_size(conversion.nbytes),
        pluralize(len(conversion.left_out), "value") if conversion.left_out else "-",
    )


def _build_places_table(
    title: str, changes: tuple[LeftOutReport, ...], options: RenderOptions
) -> TableBlock:
    groups = fold_unless_verbose(
        (
            (change.place, (change.before, change.after, change.reason), change)
            for change in changes
        ),
        options,
    )
    rows = [
        (
            group.key,
            group.items[0].before or "-",
            group.items[0].after or "-",
            f"{len(group.items):,}",
            group.items[0].reason,
        )
        for group in groups
    ]
    columns = (
        "key path",
        Column("was", ColumnKind.PROSE, "-"),
        Column("is", ColumnKind.TEXT, "-"),
        COUNT,
        WHY,
    )
    return build_table(title, columns, rows, options)
