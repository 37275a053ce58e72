"""InspectReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.model import natural_sort_key
from ckptool.phrases import pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    DEVICE,
    KIND,
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
from ckptool.render.text import format_size
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
        yield from _build_checkpoint_blocks(checkpoint, options)


def _build_checkpoint_blocks(
    checkpoint: CheckpointReport, options: RenderOptions
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
    if checkpoint.quantization_config:
        yield LinesBlock((checkpoint.quantization_config,))
    for state in checkpoint.states:
        yield _build_state_tree(state, options, checkpoint.container)
        if state.quantized:
            yield _build_quantized_table(state, options)
        if state.unsaved:
            title = (
                f"Attributes of the pickled module{_format_at(state.at)}, not in its state_dict()"
            )
            yield _build_tensor_tree(title, state.unsaved, options)
    entry_rows = [(e.at, e.text) for e in checkpoint.entries]
    if entry_rows:
        yield build_table(
            "Besides tensors", ("place", Column("holds", ColumnKind.PROSE)), entry_rows, options
        )
    metadata = {
        name: text
        for name, text in checkpoint.metadata.items()
        if options.verbosity > 0 or _is_informative(name, text)
    }
    if metadata:
        metadata_rows = [(name, _truncate_text(text)) for name, text in metadata.items()]
        yield build_table("Metadata", ("name", VALUE), metadata_rows, options)


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


def _build_state_tree(state: StateReport, options: RenderOptions, container: str) -> TreeBlock:
    nbytes = sum(t.nbytes for t in state.tensors)
    tie_text = f", {pluralize(len(state.ties), 'tie')}" if state.ties else ""
    summary = f"{pluralize(len(state.tensors), 'tensor')}, {format_size(nbytes)}{tie_text}"
    role = _COMPILED_ROLE_NAMES.get(container) if state.role == "module" else None
    title = f"{role or _ROLE_NAMES[state.role]}{_format_at(state.at)}: {summary}"
    return _build_tensor_tree(title, state.tensors, options)


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
    columns = ("weight", COUNT, "scheme", "bits", "scales")
    return build_table(f"Quantised{_format_at(state.at)}: {count}", columns, rows, options)


def _format_scaling(group: QuantizedWeightsReport) -> str:
    return (group.scaling or "not known") if group.is_complete else "incomplete"


_TENSOR_COLUMNS: Final = (COUNT, Column("dtype"), Column("shape"), SIZE, DEVICE, KIND)


def _build_tensor_tree(
    title: str, tensors: tuple[TensorReport, ...], options: RenderOptions
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
        [_build_tree_row(row, total_nbytes) for row in build_key_tree(folded_tensors)],
        options,
    )


def _order_tensors(tensors: tuple[TensorReport, ...]) -> tuple[TensorReport, ...]:
    """Return the tensors in the file's order, or in natural order if that is alphabetical.

    A pickle has the order in which the module was defined; safetensors puts layer 10 before 2.
    """
    keys = [t.key for t in tensors]
    if keys != sorted(keys):
        return tensors
    return tuple(sorted(tensors, key=lambda t: natural_sort_key(t.key)))


def _build_tree_row(row: KeyTreeRow[TensorReport], total_nbytes: int) -> TreeRow:
    nbytes = sum(t.nbytes for t in row.items)
    if row.leaf is None:
        return TreeRow(
            row.name,
            row.sibling_follows,
            "",
            ("", "", "", format_size(nbytes), "", ""),
            nbytes / total_nbytes,
        )
    first, repeat_count = row.items[0], str(len(row.items))
    cells = (
        repeat_count,
        _format_dtype(first),
        str(list(first.shape)),
        format_size(nbytes),
        first.device,
        first.kind,
    )
    return TreeRow(row.name, row.sibling_follows, row.leaf.key, cells, nbytes / total_nbytes)


def _format_dtype(tensor: TensorReport) -> str:
    return tensor.dtype if tensor.layout == "strided" else f"{tensor.dtype} ({tensor.layout})"
