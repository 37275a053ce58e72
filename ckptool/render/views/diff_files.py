"""DiffFilesReport, DiffShardReport -> blocks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ckptool.folding import replace_layer_numbers
from ckptool.model import DTYPE_BITS, natural_sort_key
from ckptool.phrases import join_limited, pluralize, quote_code
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    WHAT,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    TableBlock,
    VerdictBlock,
    build_keys_table,
    build_table,
    fold_unless_verbose,
)
from ckptool.render.views.diff import build_explanation_blocks
from ckptool.reports.diff_files import ChangeReport, DiffFilesReport, DiffShardReport

_MEASURES: Final = tuple(
    Column(header, ColumnKind.EXACT) for header in ("changed", "max abs", "relative")
)
_TENSOR_COLUMNS: Final[tuple[Column | str, ...]] = ("key", *_MEASURES, WHAT)
_MODULE_COLUMNS: Final[tuple[Column | str, ...]] = (
    "module",
    Column("tensors", ColumnKind.NUMBER),
    *_MEASURES,
)
_MAX_TIES: Final = 3
_MAX_NAMED: Final = 2
"""Maximum keys in the verdict."""
_MAX_ENTRIES: Final = 20
"""Maximum plain values shown; the rest is only counted. -v shows all."""
_MAX_TENSORS: Final = 20
"""Maximum tensors shown; the rest is only counted. -v shows all."""
_MIN_TENSORS_FOR_MODULES: Final = 8
"""Number of changed tensors from which a table by module precedes the tensors."""


def build_blocks(
    report: DiffFilesReport | DiffShardReport, options: RenderOptions
) -> Iterator[Block]:
    if isinstance(report, DiffShardReport):
        return _build_diff_shard_blocks(report, options)
    return _build_diff_files_blocks(report, options)


def _build_diff_files_blocks(report: DiffFilesReport, options: RenderOptions) -> Iterator[Block]:
    details = ", ".join(_iter_verdict_details(report))
    verdict = report.verdict
    if verdict == "compatible" and (report.changed_keys or report.exit_code):
        verdict = "compatible, but not equal"
    text = f"{verdict}: {details}" if details else verdict
    yield VerdictBlock(text, bool(report.exit_code))
    if options.verbosity < 0:
        return
    yield LinesBlock(tuple(_iter_summary_lines(report)))
    if report.explanation:
        yield from build_explanation_blocks(report.explanation, options)
        return
    quantized = report.quantized_keys if options.verbosity == 0 else ()
    for title, keys in (
        ("Added", _exclude_keys(report.added_keys, (*report.renamed_keys.values(), *quantized))),
        ("Removed", _exclude_keys(report.removed_keys, (*report.renamed_keys, *quantized))),
        ("Changed in value", _select_unmeasured_keys(report)),
    ):
        if keys:
            yield build_keys_table(title, keys, options)
    if report.renamed_keys:
        yield _build_renames_table(report.renamed_keys, options)
    if len(report.changes) >= _MIN_TENSORS_FOR_MODULES:
        yield _build_modules_table(report.changes, options)
    if report.changes:
        yield _build_tensors_table(report.changes, options, has_tolerance=report.rtol is not None)
    yield from _build_plain_data_blocks(report, options)


def _build_plain_data_blocks(report: DiffFilesReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the plain values that differ as `epoch: 3 -> 4`, and the places of other parts."""
    shown = report.entry_changes if options.verbosity > 0 else report.entry_changes[:_MAX_ENTRIES]
    lines = [f"{change.place}: {change.old} -> {change.new}" for change in shown]
    omitted_count = len(report.entry_changes) - len(shown)
    if omitted_count:
        lines.append(f"... and {omitted_count:,} more values (-v shows all)")
    if lines:
        yield LinesBlock(("plain data that differs:", *(f"  {line}" for line in lines)))
    named_places = {change.place for change in report.entry_changes}
    others = [
        place
        for place in report.changed_entries
        if place not in named_places
        and place not in report.unsaved_roles
        and not any(named.startswith(f"{place}.") for named in named_places)
    ]
    if others:
        yield build_keys_table("Plain data that differs", others, options)
    if report.unsaved_roles:
        rows = list(report.unsaved_roles.items())
        yield build_table("Not in the state_dict, and different", ("key", "role"), rows, options)


def _iter_verdict_details(report: DiffFilesReport) -> Iterator[str]:
    """Yield what the verdict rests on: the keys, or how many of them."""
    match report.verdict:
        case "breaking":
            changed_keys = [key for key in report.changed_keys if key not in report.value_keys]
            for keys, participle in (
                (report.removed_keys, "removed"),
                (report.added_keys, "added"),
                (changed_keys, "changed"),
            ):
                if keys:
                    yield f"{pluralize(len(keys), 'key')} {participle}"
        case "compatible" if report.changed_keys:
            yield f"{pluralize(len(report.changed_keys), 'key')} changed"
        case "values differ" | "plain data differs":
            yield join_limited(report.value_keys or report.changed_entries, _MAX_NAMED, quote_code)
        case _:
            return


def _build_diff_shard_blocks(report: DiffShardReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    yield LinesBlock(
        (
            f"{report.old} against {report.new}",
            f"{pluralize(report.compared, 'comparison')}, {len(report.differing_keys)} differ",
            "--format json -o FILE keeps what `ckptool merge FILE...` needs",
        )
    )


def _iter_summary_lines(report: DiffFilesReport) -> Iterator[str]:
    location = (
        f", `{report.old_at or '.'}` against `{report.new_at or '.'}`"
        if report.old_at != report.new_at
        else ""
    )
    yield f"{report.old} against {report.new}{location}"
    yield (
        f"keys: {len(report.added_keys)} added, {len(report.removed_keys)} removed, "
        f"{len(report.changed_keys)} changed"
        + (f"; {len(report.renamed_keys)} probably renamed" if report.renamed_keys else "")
    )
    if report.quantized_keys:
        quantized = pluralize(len(report.quantized_keys), "key")
        yield f"{quantized} of them because only one file is quantised (-v shows all)"
    if report.retied_keys:
        names = join_limited(
            report.retied_keys.items(), _MAX_TIES, lambda tie: f"`{tie[0]}` (as `{tie[1]}`)"
        )
        yield f"tied, and stored under one name in safetensors: {names}"
    casts = Counter((c.old_dtype, c.new_dtype, c.rounding) for c in report.changes)
    for (old, new, rounding), number in casts.items():
        if old != new:
            description = "only rounding" if rounding else "more than rounding"
            yield f"dtypes: {pluralize(number, 'tensor')} {old} -> {new}, {description}"
    if report.rtol is not None:
        yield f"tolerance: {_format_number(report.atol)} + {_format_number(report.rtol)} * abs(old)"


def _exclude_keys(keys: tuple[str, ...], excluded: Iterable[str]) -> tuple[str, ...]:
    excluded_keys = set(excluded)
    return tuple(key for key in keys if key not in excluded_keys)


def _select_unmeasured_keys(report: DiffFilesReport) -> tuple[str, ...]:
    measured_keys = {change.key for change in report.changes}
    return tuple(key for key in report.value_keys if key not in measured_keys)


def _build_renames_table(renames: Mapping[str, str], options: RenderOptions) -> TableBlock:
    folded_renames = fold_unless_verbose(
        ((old, replace_layer_numbers(new), new) for old, new in _sort_pairs(renames)), options
    )
    rows = [
        (
            group.key,
            replace_layer_numbers(group.items[0]) if len(group.items) > 1 else group.items[0],
            str(len(group.items)),
        )
        for group in folded_renames
    ]
    return build_table("Renamed", ("key", "now", COUNT), rows, options)


def _sort_pairs(pairs: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(pairs.items(), key=lambda pair: natural_sort_key(pair[0]))


def _build_modules_table(changes: tuple[ChangeReport, ...], options: RenderOptions) -> TableBlock:
    """Group changed tensors by module, and modules that differ in layer numbers only."""
    changes_by_module: dict[str, list[ChangeReport]] = {}
    for change in changes:
        changes_by_module.setdefault(
            replace_layer_numbers(change.key.rpartition(".")[0]) or ".", []
        ).append(change)
    rows = [
        (
            module,
            f"{len(module_changes):,}",
            _format_share(
                sum(c.changed for c in module_changes), sum(c.elements for c in module_changes)
            ),
            _format_number(
                max((c.max_abs for c in module_changes if c.max_abs is not None), default=None)
            ),
            _format_number(
                max(
                    (c.relative_l2 for c in module_changes if c.relative_l2 is not None),
                    default=None,
                )
            ),
        )
        for module, module_changes in changes_by_module.items()
    ]
    return build_table("Values by module", _MODULE_COLUMNS, rows, options)


def _build_tensors_table(
    changes: tuple[ChangeReport, ...], options: RenderOptions, *, has_tolerance: bool
) -> TableBlock:
    shown_changes = changes if options.verbosity > 0 else changes[:_MAX_TENSORS]
    rows = [
        (
            change.key,
            _format_share(change.changed, change.elements),
            _format_number(change.max_abs),
            _format_number(change.relative_l2),
            _describe_change(change, has_tolerance=has_tolerance),
        )
        for change in shown_changes
    ]
    table = build_table(
        "Values that differ, largest relative change first", _TENSOR_COLUMNS, rows, options
    )
    omitted_count = len(changes) - len(shown_changes)
    more = f"... and {omitted_count:,} more tensors (-v shows all)" if omitted_count else table.more
    return TableBlock(table.title, table.columns, table.rows, more)


def _format_share(changed_count: int, elements: int) -> str:
    """Return "all", the number of changed elements below 1,000, else their percentage."""
    if changed_count == elements and elements > 1:
        return "all"
    if changed_count < 1000:
        return str(changed_count)
    return f"{1000 * changed_count // elements / 10:g}%"


def _format_number(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"


def _describe_change(change: ChangeReport, *, has_tolerance: bool) -> str:
    texts = list(_iter_change_texts(change))
    if has_tolerance and change.changed:
        texts.append("within tolerance" if change.close else "beyond tolerance")
    return ", ".join(texts)


def _iter_change_texts(change: ChangeReport) -> Iterator[str]:
    if change.old_dtype != change.new_dtype:
        if not change.changed:
            yield f"{change.new_dtype}, same values"
        elif change.rounding:
            coarser_dtype = min(
                (change.new_dtype, change.old_dtype), key=lambda name: DTYPE_BITS.get(name, 0)
            )
            yield f"rounding to {coarser_dtype}"
        else:
            yield f"{change.new_dtype} and other values"
    yield from _iter_nonfinite_texts(change)


def _iter_nonfinite_texts(change: ChangeReport) -> Iterator[str]:
    """Yield how many elements are NaN or infinite, and that max abs leaves them out."""
    old_count, new_count = change.old_nonfinite, change.new_nonfinite
    if old_count != new_count:
        before = f" (was {old_count:,})" if old_count else ""
        yield f"{new_count:,} NaN or infinite{before}"
    elif old_count:
        yield f"{old_count:,} NaN or infinite in both"
    if old_count + new_count and change.max_abs is not None:
        yield "left out of max abs"
