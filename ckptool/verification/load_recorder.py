"""LoadRecorder: which memory is copied into which, while `load_state_dict` runs."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from ckptool.modules.dispatch_mode import DispatchMode
from ckptool.modules.tensor_parts import is_lazy

_COPY: Final = torch.ops.aten.copy_.default


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
        self._origins: dict[int, int | None] = {}
        self._kept: list[object] = []
        """Storages that were seen: an id is given again once its storage is gone."""

    def find_origin(self, tensor: Tensor) -> int | None:
        """Return the id of the storage whose elements `tensor` has; None if they were computed.

        It is the tensor's own storage if nothing was written into it.
        """
        storage_id = identify_storage(tensor)
        return self._origins.get(storage_id, storage_id)

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
                self._set_origin(tensor, None)
        return result

    def _record_copy(self, target: Tensor, source: Tensor) -> None:
        if identify_storage(target) == identify_storage(source):
            return
        is_whole = _is_whole_storage(target) and source.numel() == target.numel()
        self._set_origin(target, self.find_origin(source) if is_whole else None)
        self._kept.append(source)

    def _set_origin(self, tensor: Tensor, origin: int | None) -> None:
        self._origins[identify_storage(tensor)] = origin
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


def identify_storage(tensor: Tensor) -> int:
    """Return a number that tensors share if they share memory; lazy and sparse ones have none."""
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return id(tensor)
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (RuntimeError, NotImplementedError):
        # A wrapper subclass, whose memory is its components'.
        return id(tensor)
