"""InspectReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.folding import FoldedItems
from ckptool.model import natural_sort_key
from ckptool.phrases import format_size, pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    DEVICE,
    DTYPE,
    KIND,
    SHAPE,
    SIZE,
    VALUE,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    TableBlock,
    TreeBlock,
    TreeRow,
    VerdictBlock,
    build_table,
    build_tree,
    fold_unless_verbose,
)
from ckptool.render.key_tree import KeyTreeRow, build_key_tree
from ckptool.render.tensor_values import build_values_blocks
from ckptool.reports.common import TensorReport
from ckptool.reports.inspect import (
    CheckpointReport,
    InspectReport,
    QuantizedWeightsReport,
    StateReport,
)

_MAX_METADATA_CHARACTERS: Final = 400


def build_blocks(report: InspectReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the contents of each checkpoint."""
    for checkpoint in report.checkpoints:
        yield from _build_checkpoint_blocks(checkpoint, report, options)


def _build_checkpoint_blocks(
    checkpoint: CheckpointReport, report: InspectReport, options: RenderOptions
) -> Iterator[Block]:
    tensors = [t for state in checkpoint.states for t in state.tensors]
    parts = (
        checkpoint.container,
        f"{format_size(checkpoint.nbytes)} on disk",
        pluralize(len(tensors), "tensor"),
        f"{format_size(sum(t.nbytes for t in tensors))} of tensor data",
    )
    yield VerdictBlock(f"{checkpoint.path}: {', '.join(parts)}", bool(checkpoint.damage))
    if options.verbosity < 0:
        return
    yield LinesBlock(tuple(_iter_summary_lines(checkpoint)))
    if checkpoint.values is not None:
        yield from build_values_blocks(checkpoint.values, options)
        return
    for state in checkpoint.states:
        yield _build_state_block(state, report, options, checkpoint.container)
        if state.quantized:
            yield _build_quantized_table(state, options)
        if state.unsaved:
            title = (
                f"Attributes of the pickled module{_format_at(state.at)}, not in its state_dict()"
            )
            yield _build_tensor_tree(title, state.unsaved, options, report.depth)
    entry_rows = [(e.at, e.text) for e in checkpoint.entries]
    if entry_rows:
        yield build_table(
            "Non-tensor entries",
            ("key path", Column("value", ColumnKind.PROSE)),
            entry_rows,
            options,
        )
    metadata = {
        name: text
        for name, text in checkpoint.metadata.items()
        if options.verbosity > 0 or _is_informative(name, text)
    }
    if metadata:
        metadata_rows = [(name, _truncate_text(text)) for name, text in metadata.items()]
        yield build_table("Metadata", ("name", VALUE), metadata_rows, options)


def _iter_summary_lines(checkpoint: CheckpointReport) -> Iterator[str]:
    """Yield whether it is safe, the number of parameters, and what the configuration declares."""
    if checkpoint.safety:
        yield checkpoint.safety
    states = [state for state in checkpoint.states if state.role in {"state_dict", "module"}]
    if checkpoint.parameters and not any(state.quantized for state in states):
        yield _format_parameters(checkpoint, states)
    if checkpoint.quantization_config:
        yield checkpoint.quantization_config


def _format_parameters(checkpoint: CheckpointReport, states: list[StateReport]) -> str:
    count = pluralize(checkpoint.parameters, "parameter")
    place = f" in {pluralize(len(states), 'state')}" if len(states) > 1 else ""
    if all(state.role == "module" for state in states):
        return f"{count}{place}"
    return f"{count}{place}, counting all floating-point tensors but running_mean and running_var"


_DEFAULT_METADATA: Final = {
    "version": "3",
    "byteorder": "little",
    ".format_version": "1",
    ".storage_alignment": "64",
}
"""Metadata that current torch.save writes into every file."""


def _is_informative(name: str, text: str) -> bool:
    return name != ".data/serialization_id" and _DEFAULT_METADATA.get(name) != text


def _truncate_text(text: str) -> str:
    """Truncate a metadata value, which may be megabytes."""
    if len(text) <= _MAX_METADATA_CHARACTERS:
        return text
    return f"{text[:_MAX_METADATA_CHARACTERS]}... ({len(text):,} characters)"


def _format_at(at: str) -> str:
    return f" at `{at}`" if at else ""


_ROLE_NAMES: Final = {
    "state_dict": "state_dict",
    "module": "pickled module",
    "optimizer": "optimizer state",
    "tensors": "tensors",
}


_COMPILED_ROLE_NAMES: Final = {
    "torchscript": "TorchScript module",
    "torch-export": "exported program",
}


def _build_state_block(
    state: StateReport, report: InspectReport, options: RenderOptions, container: str
) -> TreeBlock | TableBlock | LinesBlock:
    nbytes = sum(t.nbytes for t in state.tensors)
    tie_text = f", {pluralize(len(state.ties), 'tie')}" if state.ties else ""
    summary = f"{pluralize(len(state.tensors), 'tensor')}, {format_size(nbytes)}{tie_text}"
    role = _COMPILED_ROLE_NAMES.get(container) if state.role == "module" else None
    title = f"{role or _ROLE_NAMES[state.role]}{_format_at(state.at)}: {summary}"
    if not state.tensors:
        return LinesBlock((title,))
    if report.sort in {"", "name"}:
        tensors = _sort_by_name(state.tensors) if report.sort else state.tensors
        return _build_tensor_tree(title, tensors, options, report.depth)
    return _build_sorted_table(title, state.tensors, report.sort, options)


def _build_sorted_table(
    title: str, tensors: tuple[TensorReport, ...], sort: str, options: RenderOptions
) -> TableBlock:
    """Build a table of the tensors, the largest or those of one dtype first."""
    groups = fold_unless_verbose(
        ((t.key, (t.dtype, t.shape, t.device, t.kind, t.layout), t) for t in tensors), options
    )

    def get_rank(group: FoldedItems[TensorReport]) -> tuple[object, ...]:
        nbytes = sum(tensor.nbytes for tensor in group.items)
        dtype = group.items[0].dtype if sort == "dtype" else ""
        return (dtype, -nbytes, natural_sort_key(group.key))

    rows = [(group.key, *_build_cells(group.items)) for group in sorted(groups, key=get_rank)]
    return build_table(title, ("key", *_TENSOR_COLUMNS), rows, options)


def _build_quantized_table(state: StateReport, options: RenderOptions) -> TableBlock:
    count = pluralize(sum(group.weights for group in state.quantized), "weight")
    rows = [
        (
            group.pattern,
            f"{group.weights:,}",
            group.scheme,
            f"{group.bits:,}" if group.bits else "not known",
            _format_scaling(group),
        )
        for group in state.quantized
    ]
    columns: tuple[Column | str, ...] = ("weight", COUNT, *_SCHEME_COLUMNS)
    return build_table(f"Quantised{_format_at(state.at)}: {count}", columns, rows, options)


def _format_scaling(group: QuantizedWeightsReport) -> str:
    return (group.scaling or "not known") if group.is_complete else "incomplete"


_SCHEME_COLUMNS: Final[tuple[Column, ...]] = tuple(
    Column(header, ColumnKind.WORDS) for header in ("scheme", "bits", "scales")
)
_TENSOR_COLUMNS: Final = (COUNT, DTYPE, SHAPE, SIZE, DEVICE, KIND)


def _build_tensor_tree(
    title: str, tensors: tuple[TensorReport, ...], options: RenderOptions, depth: int = 0
) -> TreeBlock:
    folded_tensors = fold_unless_verbose(
        (
            (t.key, (t.dtype, t.shape, t.device, t.kind, t.layout), t)
            for t in _order_tensors(tensors)
        ),
        options,
    )
    total_nbytes = sum(t.nbytes for t in tensors) or 1
    return build_tree(
        title,
        _TENSOR_COLUMNS,
        list(_iter_tree_rows(build_key_tree(folded_tensors), total_nbytes, depth)),
        options,
    )


def _iter_tree_rows(
    rows: list[KeyTreeRow[TensorReport]], total_nbytes: int, depth: int
) -> Iterator[TreeRow]:
    """Yield the rows of the first `depth` levels (0: all)."""
    names: list[str] = []
    for row in rows:
        level = len(row.sibling_follows)
        names[level - 1 :] = [row.name]
        if not depth or level <= depth:
            is_cut = level == depth and row.leaf is None
            yield _build_tree_row(row, total_nbytes, f"{'.'.join(names)}.*" if is_cut else "")


def _sort_by_name(tensors: tuple[TensorReport, ...]) -> tuple[TensorReport, ...]:
    return tuple(sorted(tensors, key=lambda t: natural_sort_key(t.key)))


def _order_tensors(tensors: tuple[TensorReport, ...]) -> tuple[TensorReport, ...]:
    """Return the tensors in the file's order, or in natural order if that is alphabetical.

    A pickle has the order in which the module was defined; safetensors puts layer 10 before 2.
    """
    keys = [t.key for t in tensors]
    if keys != sorted(keys):
        return tensors
    return _sort_by_name(tensors)


def _build_tree_row(row: KeyTreeRow[TensorReport], total_nbytes: int, cut_key: str) -> TreeRow:
    """Build a row; one whose children are cut, at `cut_key`, counts the tensors below it."""
    nbytes = sum(t.nbytes for t in row.items)
    if row.leaf is None:
        return TreeRow(
            row.name,
            row.sibling_follows,
            cut_key,
            (f"{len(row.items):,}" if cut_key else "", "", "", format_size(nbytes), "cpu", ""),
            nbytes / total_nbytes,
        )
    cells = _build_cells(row.items)
    return TreeRow(row.name, row.sibling_follows, row.leaf.key, cells, nbytes / total_nbytes)


def _build_cells(tensors: tuple[TensorReport, ...]) -> tuple[str, ...]:
    """Return the cells of tensors that differ in layer numbers only."""
    first = tensors[0]
    return (
        str(len(tensors)),
        _format_dtype(first),
        str(list(first.shape)),
        format_size(sum(t.nbytes for t in tensors)),
        first.device,
        first.kind,
    )


def _format_dtype(tensor: TensorReport) -> str:
    return tensor.dtype if tensor.layout == "strided" else f"{tensor.dtype} ({tensor.layout})"
