"""LoadRecorder: which memory is copied into which, while `load_state_dict` runs."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ckptool.modules.dispatch_mode import DispatchMode
from ckptool.modules.tensors.tensor_parts import is_lazy
from ckptool.verification.loading.value_use import ValueUse

_COPY: Final = torch.ops.aten.copy_.default


ElementOrder = tuple[object, ...]
"""Equal for tensors of one storage that have the same elements in the same order."""


class ElementSource(NamedTuple):
    """The memory that the elements of a tensor come from, without having been changed."""

    storage: int
    """As by `identify_storage`."""
    order: ElementOrder | None
    """Which elements of the storage, in which order; None if not known."""


class LoadRecorder(DispatchMode):
    """While entered, records of each storage that is written whose elements it has then.

    `load_state_dict` copies each tensor of its argument into the module's, and a hook may copy,
    cut, or change them in place before. All of it is known by the storages, so that tensors on
    meta do.
    """

    def __init__(self, *, has_values: bool = False) -> None:
        """Make a recorder.

        Args:
            has_values: whether a tensor on meta is so in the file, and to be refused.
        """
        super().__init__()
        self._has_values = has_values
        self.value_use = ValueUse(has_values=has_values)
        """Entered with the recorder."""
        self._written: dict[int, tuple[ElementOrder, ElementSource | None]] = {}
        """Storage -> the order in which it was written, and from where; None if computed."""
        self._kept: list[object] = []
        """Storages that were seen: an id is given again once its storage is gone."""

    def find_source(self, tensor: Tensor) -> ElementSource | None:
        """Return where the elements of `tensor` come from; None if they were computed.

        It is the tensor's own memory if nothing was written into it.
        """
        storage, order = identify_storage(tensor), describe_element_order(tensor)
        if storage not in self._written:
            return ElementSource(storage, order)
        written_order, source = self._written[storage]
        if source is None or written_order == order:
            return source
        return ElementSource(source.storage, None)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _COPY:
            target, source = args[0], args[1]
            target.copy_(source, *args[2:])
            if target.is_meta and (self._has_values if source.is_meta else not _is_plain(source)):
                # On meta nothing is copied: what torch may refuse is copied for real.
                torch.empty_like(target, device="cpu").copy_(source)
            self._record_copy(target, source)
            return target
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable and torch.Tag.inplace_view not in func.tags:  # noqa: SLF001
            for tensor in _iter_written(func, args, kwargs or {}):
                self._set_source(tensor, None)
        return result

    def _record_copy(self, target: Tensor, source: Tensor) -> None:
        if identify_storage(target) == identify_storage(source):
            return
        is_whole = _is_whole_storage(target) and source.numel() == target.numel()
        self._set_source(target, self.find_source(source) if is_whole else None)
        self._kept.append(source)

    def _set_source(self, tensor: Tensor, source: ElementSource | None) -> None:
        self._written[identify_storage(tensor)] = describe_element_order(tensor), source
        self._kept.append(tensor)


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized
    return is_dense and type(tensor) in {Tensor, torch.nn.Parameter}


def _is_whole_storage(tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return True
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _iter_written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensor arguments that the operator `func` writes into."""
    for index, argument in enumerate(func._schema.arguments):  # noqa: SLF001
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Tensor):
                yield item


def describe_element_order(tensor: Tensor) -> ElementOrder:
    """Return a value that is equal for views of one storage with the same elements in one order.

    A view with a different shape has the same order, a transposed view or a slice has not.
    """
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return ()
    dimensions: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size == 1:
            continue
        if dimensions and dimensions[-1][1] == size * stride:
            dimensions[-1] = (dimensions[-1][0] * size, stride)
        else:
            dimensions.append((size, stride))
    return (
        *(tensor.dtype, tensor.storage_offset(), tensor.is_conj(), tensor.is_neg()),
        *(dimensions if tensor.numel() else ()),
    )


def identify_storage(tensor: Tensor) -> int:
    """Return a number that tensors share if they share memory; lazy and sparse ones have none."""
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return id(tensor)
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (RuntimeError, NotImplementedError):
        # A wrapper subclass, whose memory is its components'.
        return id(tensor)
