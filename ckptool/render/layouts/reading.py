"""InspectReport, DiffModuleReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from ckptool.render import Style
from ckptool.render.blocks import Block, Branch, Grid, Lines, Tree, Verdict, grid, groups, tree_of
from ckptool.render.layouts.checking import unsaved_grid
from ckptool.render.text import count, size
from ckptool.render.tree import Row, tree
from ckptool.report import (
    CheckpointReport,
    DiffModuleReport,
    FactReport,
    InspectReport,
    KeyVerdict,
    StateReport,
    TensorReport,
)

_MOST_METADATA: Final = 400


def inspection(report: InspectReport, style: Style) -> Iterator[Block]:
    """Yield the contents of each checkpoint."""
    for one in report.checkpoints:
        yield from _checkpoint(one, style)


def _checkpoint(checkpoint: CheckpointReport, style: Style) -> Iterator[Block]:
    tensors = [t for state in checkpoint.states for t in state.tensors]
    parts = (
        checkpoint.container,
        f"{size(checkpoint.nbytes)} on disk",
        count(len(tensors), "tensor"),
        f"{size(sum(t.nbytes for t in tensors))} of elements",
    )
    yield Verdict(f"{checkpoint.path}: {', '.join(parts)}", bool(checkpoint.damage))
    if style.verbosity < 0:
        return
    for state in checkpoint.states:
        yield _state(state, style, checkpoint.container)
        if state.unsaved:
            title = f"Held by the pickled module{_at(state.at)}, and not in its state_dict()"
            yield _tensors(title, state.unsaved, style)
    rest = [(e.at, e.text) for e in checkpoint.entries]
    if rest:
        yield grid("Besides tensors", ("place", "holds"), rest, style)
    told = {k: v for k, v in checkpoint.metadata.items() if style.verbosity > 0 or _tells(k, v)}
    if told:
        named = [(name, _beginning(text)) for name, text in told.items()]
        yield grid("Metadata", ("name", "value"), named, style)


_ORDINARY: Final = {
    "version": "3",
    "byteorder": "little",
    ".format_version": "1",
    ".storage_alignment": "64",
}
"""Metadata that current torch.save writes into every file."""


def _tells(name: str, text: str) -> bool:
    return name != ".data/serialization_id" and _ORDINARY.get(name) != text


def _beginning(text: str) -> str:
    """Truncate a metadata value, which may be megabytes."""
    if len(text) <= _MOST_METADATA:
        return text
    return f"{text[:_MOST_METADATA]}... ({len(text):,} characters)"


def _at(at: str) -> str:
    return f" at `{at}`" if at else ""


_ROLES: Final = {
    "state_dict": "state_dict",
    "module": "pickled module",
    "optimizer": "optimizer state",
    "tensors": "tensors",
}


_COMPILED: Final = {"torchscript": "TorchScript module", "torch-export": "exported program"}


def _state(state: StateReport, style: Style, container: str) -> Tree:
    elements = sum(t.nbytes for t in state.tensors)
    tied = f", {count(len(state.ties), 'tie')}" if state.ties else ""
    held = f"{count(len(state.tensors), 'tensor')}, {size(elements)}{tied}"
    role = _COMPILED.get(container) if state.role == "module" else None
    title = f"{role or _ROLES[state.role]}{_at(state.at)}: {held}"
    return _tensors(title, state.tensors, style)


_COLUMNS: Final = ("count", "dtype", "shape", "size", "device", "kind")


def _tensors(title: str, tensors: tuple[TensorReport, ...], style: Style) -> Tree:
    folded = groups(
        ((t.key, (t.dtype, t.shape, t.device, t.kind, t.layout), t) for t in tensors), style
    )
    whole = sum(t.nbytes for t in tensors) or 1
    return tree_of(title, _COLUMNS, [_branch(row, whole) for row in tree(folded)], style)


def _branch(row: Row[TensorReport], whole: int) -> Branch:
    nbytes = sum(t.nbytes for t in row.items)
    if row.leaf is None:
        return Branch(row.name, row.more, "", ("", "", "", size(nbytes), "", ""), nbytes / whole)
    first, times = row.items[0], str(len(row.items))
    cells = (times, _dtype(first), str(list(first.shape)), size(nbytes), first.device, first.kind)
    return Branch(row.name, row.more, row.leaf.key, cells, nbytes / whole)


def _dtype(tensor: TensorReport) -> str:
    return tensor.dtype if tensor.layout == "strided" else f"{tensor.dtype} ({tensor.layout})"


def loading(report: DiffModuleReport, style: Style) -> Iterator[Block]:
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    counts = (
        f"{len(report.matched)} match",
        f"{len(report.missing_keys)} missing",
        f"{len(report.unexpected_keys)} unexpected",
        f"{len(report.mismatched_keys)} of another shape",
    )
    yield Lines(
        (
            f"{report.path} against {report.module}",
            f"keys: {', '.join(counts)}; {100 * report.coverage:.0f}% of the parameters would load",
            *report.notes,
        )
    )
    if report.explanation:
        yield from explanation(report.explanation, style)
        return
    if report.verdicts:
        yield _verdict_grid(report.verdicts, style)
    if report.unsaved:
        yield unsaved_grid(report.unsaved, style)


def explanation(facts: tuple[FactReport, ...], style: Style) -> Iterator[Block]:
    yield grid(
        "All that is known of this key",
        ("fact", "value"),
        [(f.name, f.value) for f in facts],
        style,
    )


_PREFIX: Final = "CK209"
_MOST_PREFIXED: Final = 10
"""Rows of keys that differ by a wrapper's prefix only; from this number on they are counted."""


def _verdict_grid(verdicts: tuple[KeyVerdict, ...], style: Style) -> Grid | Lines:
    # A prefix is one finding; without this the table has a row for each key of the file.
    shown = [v for v in verdicts if v.code != _PREFIX or style.verbosity > 0]
    left = len(verdicts) - len(shown)
    if left < _MOST_PREFIXED:
        shown, left = [*verdicts], 0
    folded = groups(((v.key, (v.problem, v.code), v) for v in shown), style)
    rows = [
        (
            g.key,
            str(len(g.items)),
            g.items[0].problem,
            g.items[0].level or "ignored",
            g.items[0].code,
        )
        for g in folded
    ]
    found = grid(
        "Keys that do not match", ("key", "count", "problem", "matters", "rule"), rows, style
    )
    if not left:
        return found
    if not shown:
        return Lines((f"Keys that do not match: {left:,}, as {_PREFIX} explains (-v shows all)",))
    told = f"... and {left:,} keys that {_PREFIX} explains (-v shows all)"
    return replace(found, more="; ".join(filter(None, (found.more, told))))
