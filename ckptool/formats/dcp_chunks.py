"""Chunks of a DCP tensor -> nothing, or PickleTreeError: they cover it, and do not overlap."""

from collections.abc import Sequence
from math import prod

from ckptool.formats.pickle.nodes import PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.model import TensorComponent


def check_chunks_cover(
    key: str, tensor_shape: tuple[int, ...], components: Sequence[TensorComponent]
) -> None:
    """Raise PickleTreeError if chunks leave a gap, overlap, or exceed the tensor."""
    for component in components:
        shape = component.tensor.shape
        if len(shape) != len(tensor_shape) or len(component.offsets) != len(tensor_shape):
            raise PickleTreeError(
                f"{quote_name(key)} has a chunk with a different number of dimensions"
            )
        ends = (offset + length for offset, length in zip(component.offsets, shape, strict=True))
        if any(end > length for end, length in zip(ends, tensor_shape, strict=True)):
            raise PickleTreeError(f"{quote_name(key)} has a chunk outside its bounds")
    chunks_numel = sum(prod(component.tensor.shape) for component in components)
    if chunks_numel != prod(tensor_shape):
        raise PickleTreeError(
            f"{quote_name(key)} has {prod(tensor_shape)} elements and its chunks have"
            f" {chunks_numel}"
        )
    _check_no_overlap(key, [component for component in components if component.tensor.numel])


def _check_no_overlap(key: str, components: list[TensorComponent]) -> None:
    """Raise PickleTreeError if two chunks overlap.

    Chunks whose sizes add up to the tensor cover it if and only if they are disjoint.
    """
    if len(components) < 2:
        return
    axes = range(len(components[0].offsets))
    # Sweep along the axis with the most distinct offsets: fewest chunks share a position there.
    split_axis = max(
        axes, key=lambda axis: len({component.offsets[axis] for component in components}), default=0
    )
    components = sorted(
        components, key=lambda component: component.offsets[split_axis : split_axis + 1]
    )
    for index, component in enumerate(components):
        end = component.offsets[split_axis] + component.tensor.shape[split_axis] if axes else 1
        for next_component in components[index + 1 :]:
            if axes and next_component.offsets[split_axis] >= end:
                break
            if _do_chunks_overlap(component, next_component):
                raise PickleTreeError(f"{quote_name(key)} has chunks that overlap")


def _do_chunks_overlap(first: TensorComponent, second: TensorComponent) -> bool:
    return all(
        first_offset < second_offset + second_length and second_offset < first_offset + first_length
        for first_offset, first_length, second_offset, second_length in zip(
            first.offsets, first.tensor.shape, second.offsets, second.tensor.shape, strict=True
        )
    )
