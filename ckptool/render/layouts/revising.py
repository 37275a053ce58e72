"""DiffFilesReport, DiffShardReport -> blocks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ckptool.model import BITS
from ckptool.render import Style
from ckptool.render.blocks import Block, Grid, Lines, Verdict, grid, groups
from ckptool.render.layouts.reading import explanation
from ckptool.render.text import count, pattern
from ckptool.report import ChangeReport, DiffFilesReport, PartReport

_HEADERS: Final = ("key", "changed", "max abs", "relative", "what")
_MODULES: Final = ("module", "tensors", "changed", "max abs", "relative")
_MOST: Final = 20
"""Maximum tensors shown; the rest is only counted. -v shows all."""
_MANY: Final = 8
"""Number of changed tensors from which a table by module precedes the tensors."""


def revision(report: DiffFilesReport, style: Style) -> Iterator[Block]:
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    yield Lines(tuple(_head(report)))
    if report.explanation:
        yield from explanation(report.explanation, style)
        return
    for title, keys in (
        ("Added", _others(report.added_keys, report.renamed_keys.values())),
        ("Removed", _others(report.removed_keys, report.renamed_keys)),
        ("Changed in value", _not_measured(report)),
        ("Plain data that differs", report.changed_entries),
    ):
        if keys:
            yield grid(title, ("key", "count"), _key_rows(keys, style), style)
    if report.renamed_keys:
        yield _renamed(report.renamed_keys, style)
    if len(report.changes) >= _MANY:
        yield _modules(report.changes, style)
    if report.changes:
        yield _tensors(report.changes, style, tolerated=report.rtol is not None)


def part(report: PartReport, style: Style) -> Iterator[Block]:
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    yield Lines(
        (
            f"{report.old} against {report.new}",
            f"{count(report.compared, 'comparison')}, {len(report.differing_keys)} differ",
            "--format json -o FILE keeps what `ckptool merge FILE...` needs",
        )
    )


def _head(report: DiffFilesReport) -> Iterator[str]:
    place = (
        f", `{report.old_at or '.'}` against `{report.new_at or '.'}`"
        if report.old_at != report.new_at
        else ""
    )
    yield f"{report.old} against {report.new}{place}"
    yield (
        f"keys: {len(report.added_keys)} added, {len(report.removed_keys)} removed, "
        f"{len(report.changed_keys)} changed"
        + (f"; {len(report.renamed_keys)} probably renamed" if report.renamed_keys else "")
    )
    casts = Counter((c.old_dtype, c.new_dtype, c.rounding) for c in report.changes)
    for (old, new, rounding), number in casts.items():
        if old != new:
            how = "nothing but rounding" if rounding else "more than rounding"
            yield f"dtypes: {count(number, 'tensor')} {old} -> {new}, {how}"
    if report.rtol is not None:
        yield f"tolerance: {_figure(report.atol)} + {_figure(report.rtol)} * abs(old)"


def _others(keys: tuple[str, ...], named: Iterable[str]) -> tuple[str, ...]:
    elsewhere = set(named)
    return tuple(key for key in keys if key not in elsewhere)


def _not_measured(report: DiffFilesReport) -> tuple[str, ...]:
    measured = {change.key for change in report.changes}
    return tuple(key for key in report.value_keys if key not in measured)


def _key_rows(keys: tuple[str, ...], style: Style) -> list[tuple[str, ...]]:
    return [(g.key, str(len(g.items))) for g in groups(((k, "", k) for k in keys), style)]


def _renamed(renamed: Mapping[str, str], style: Style) -> Grid:
    folded = groups(((old, pattern(new), new) for old, new in renamed.items()), style)
    rows = [
        (g.key, pattern(g.items[0]) if len(g.items) > 1 else g.items[0], str(len(g.items)))
        for g in folded
    ]
    return grid("Renamed", ("key", "now", "count"), rows, style)


def _modules(changes: tuple[ChangeReport, ...], style: Style) -> Grid:
    """Group changed tensors by module, and modules that differ in layer numbers only."""
    held: dict[str, list[ChangeReport]] = {}
    for change in changes:
        held.setdefault(pattern(change.key.rpartition(".")[0]) or ".", []).append(change)
    rows = [
        (
            module,
            f"{len(inside):,}",
            _share(sum(c.changed for c in inside), sum(c.elements for c in inside)),
            _figure(max((c.max_abs for c in inside if c.max_abs is not None), default=None)),
            _figure(
                max((c.relative_l2 for c in inside if c.relative_l2 is not None), default=None)
            ),
        )
        for module, inside in held.items()
    ]
    return grid("Values by module", _MODULES, rows, style)


def _tensors(changes: tuple[ChangeReport, ...], style: Style, *, tolerated: bool) -> Grid:
    shown = changes if style.verbosity > 0 else changes[:_MOST]
    rows = [
        (
            change.key,
            _share(change.changed, change.elements),
            _figure(change.max_abs),
            _figure(change.relative_l2),
            _what(change, tolerated=tolerated),
        )
        for change in shown
    ]
    table = grid("Values that differ, the largest relative change first", _HEADERS, rows, style)
    left = len(changes) - len(shown)
    more = f"... and {left:,} more tensors (-v shows all)" if left else table.more
    return Grid(table.title, table.headers, table.rows, more)


def _share(changed: int, elements: int) -> str:
    """Return "all", the number of changed elements below 1,000, else their percentage."""
    if changed == elements and elements > 1:
        return "all"
    if changed < 1000:
        return str(changed)
    return f"{1000 * changed // elements / 10:g}%"


def _figure(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3g}"


def _what(change: ChangeReport, *, tolerated: bool) -> str:
    words = list(_words(change))
    if tolerated and change.changed:
        words.append("within tolerance" if change.close else "beyond tolerance")
    return ", ".join(words)


def _words(change: ChangeReport) -> Iterator[str]:
    if change.old_dtype != change.new_dtype:
        if not change.changed:
            yield f"{change.new_dtype}, same values"
        elif change.rounding:
            coarse = min((change.new_dtype, change.old_dtype), key=lambda name: BITS.get(name, 0))
            yield f"rounding to {coarse}"
        else:
            yield f"{change.new_dtype} and other values"
    before, after = change.old_nonfinite, change.new_nonfinite
    if before != after:
        yield f"{after:,} not finite (was {before:,})" if before else f"{after:,} not finite"
    elif before:
        yield f"{before:,} not finite in both"
