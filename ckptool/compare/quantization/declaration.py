"""Checkpoint x QuantizationDeclaration -> whether its tensors are what the configuration says."""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from ckptool.compare.quantization.difference import list_places_inside
from ckptool.compare.quantization.layers import find_state_quantization
from ckptool.compare.quantization.scheme import QuantizationInfo, QuantizedLayer
from ckptool.compare.quantization.schemes import SCHEMES
from ckptool.compare.quantization.summary import format_schemes
from ckptool.model import Checkpoint, QuantizationDeclaration, StateDict

_TENSOR_ROLES = frozenset({"optimizer", "tensors"})
"""Roles of states whose tensors are no weights."""
_PLAIN_METHOD = "gptq"
"""Method whose quantization_config has `bits` and `group_size` for all weights."""


class DeclarationComparison(Struct, frozen=True):
    """What the tensors say of a declaration: both empty if they say nothing."""

    contradiction: str = ""
    """What they are instead, as a clause."""
    is_confirmed: bool = False
    corrections: Mapping[str, int] | None = None
    """Fields of the quantization_config that make it right, empty if all of it is removed; None if
    the tensors do not show that."""


def find_checkpoint_quantization(
    checkpoint: Checkpoint,
) -> Iterator[tuple[StateDict, QuantizationInfo]]:
    """Yield the states of models that have quantised weights, with these."""
    places = sorted(state.at for state in checkpoint.states)
    for state in checkpoint.states:
        if state.role in _TENSOR_ROLES or "_packed_params" in state.at:
            continue
        info = find_state_quantization(state, list_places_inside(places, state.at))
        if info.layers:
            yield state, info


def compare_declaration(
    checkpoint: Checkpoint, declaration: QuantizationDeclaration
) -> DeclarationComparison:
    """Compare what the configuration declares with the tensors of the file."""
    layers = [
        layer
        for _, info in find_checkpoint_quantization(checkpoint)
        for layer in info.layers
        if not layer.is_probable
    ]
    declarable_layers = [layer for layer in layers if layer.scheme.methods]
    if not declaration.method:
        if not declarable_layers:
            return DeclarationComparison()
        return DeclarationComparison(f"the file is {format_schemes(declarable_layers)}")
    known_methods = {method for scheme in SCHEMES for method in scheme.methods}
    if declaration.method not in known_methods:
        return DeclarationComparison()
    if not layers:
        reason = "the file has no weight quantised in this way"
        return DeclarationComparison(reason, corrections={})
    if all(declaration.method not in layer.scheme.methods for layer in layers):
        return DeclarationComparison(f"the file is {format_schemes(layers)}")
    return _compare_numbers(
        [layer for layer in layers if declaration.method in layer.scheme.methods], declaration
    )


def _compare_numbers(
    layers: list[QuantizedLayer], declaration: QuantizationDeclaration
) -> DeclarationComparison:
    """Compare bits and group size; a layer whose tensors say neither contradicts nothing."""
    known_bits = {layer.format.bits for layer in layers} - {0}
    # A row that is one group says nothing of the size that was asked for.
    known_groups = {layer.format.group_size for layer in layers if not _is_row(layer)} - {0}
    contradictions = (
        declaration.bits and known_bits and declaration.bits not in known_bits,
        declaration.group_size > 0 and known_groups and declaration.group_size not in known_groups,
    )
    if not any(contradictions):
        return DeclarationComparison(is_confirmed=True)
    corrections = None
    if declaration.method == _PLAIN_METHOD and len(known_bits) == len(known_groups) == 1:
        corrections = {"bits": known_bits.pop(), "group_size": known_groups.pop()}
    return DeclarationComparison(f"the file is {format_schemes(layers)}", corrections=corrections)


def _is_row(layer: QuantizedLayer) -> bool:
    shape = layer.format.shape
    return shape is not None and shape[-1:] == (layer.format.group_size,)
