"""ModuleDiff x nn.Module -> what `copy_` raises: tensors that the module's cannot take.

`load_state_dict` copies each tensor of the file into the module's. Whether torch copies one kind of
tensor (layout, dtype, subclass) into another is asked once for each pair of kinds: with samples of
one element, or, for kinds that only their own code can make, with a tensor of the file.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import ReadError
from ckptool.locations import RemotePath
from ckptool.model import Skipped, TensorInfo
from ckptool.modules.live.registered import list_registered
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.phrases import quote_code, summarize_message
from ckptool.verification.loading.free_memory import count_loadable_bytes
from ckptool.verification.loading.load_tensors import can_be_mapped, load_with_torch

_DTENSOR_MODULE: Final = "torch.distributed.tensor"
_LAYOUTS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "strided": lambda tensor: tensor,
    "chunked": lambda tensor: tensor,
    "lazy": lambda tensor: tensor,
    "sparse_coo": lambda tensor: tensor.to_sparse(),
}
"""Layout -> function that gives a dense sample this layout, where the layout alone decides."""
_DENSE_LAYOUTS: Final = ("strided", "chunked", "lazy")


class _TensorKind(NamedTuple):
    """What decides, besides the shape, whether torch can copy a tensor."""

    layout: str
    dtype: str
    wrapper: str
    """Qualified name of the subclass; "" for a plain tensor."""
    is_on_meta: bool
    values_shape: tuple[int, ...]
    """Of a compressed sparse tensor: shape of its values; else ()."""
    is_expanded: bool = False
    """Whether several elements are at one place of the memory: nothing is copied into those."""

    @property
    def words(self) -> str:
        if self.is_on_meta:
            return "on meta"
        return self.wrapper or (self.dtype if self.layout in _DENSE_LAYOUTS else self.layout)


def find_copy_error(diff: ModuleDiff, module: nn.Module, *, is_asked: bool) -> str | Skipped:
    """Return what copying raises for the first tensor that cannot be copied; "" if there is none.

    Skipped if the file has a tensor of a kind that could not be tried, and no other is refused.

    Args:
        diff: the file's tensors and the module's.
        module: the module.
        is_asked: whether loading code was asked, which may have given lazy tensors a shape.
    """
    probe = _CopyProbe(diff, {key: tensor for key, tensor, *_ in list_registered(module)})
    errors: dict[tuple[_TensorKind, _TensorKind], str | Skipped] = {}
    skipped: Skipped | None = None
    for key, tensor in diff.state.tensors.items():
        module_tensor = diff.module.saved_tensors.get(key)
        is_compared = key in probe.targets and key not in diff.mistyped_keys
        if module_tensor is None or not is_compared:
            continue
        kinds = _get_kind(tensor), _get_target_kind(module_tensor.tensor)
        if kinds[1].layout == "lazy" and kinds[0].layout in _LAYOUTS and not kinds[0].is_on_meta:
            is_copied = not is_asked and kinds[0].layout != "lazy"
            if shape_error := _copy_into_lazy(tensor.shape) if is_copied else "":
                return f"While copying {quote_code(key)}, which has no shape yet: {shape_error}"
            continue
        if kinds not in errors:
            errors[kinds] = probe.find_error(key, *kinds)
        error = errors[kinds]
        if isinstance(error, Skipped):
            skipped = skipped or error
        elif error:
            return f"While copying {quote_code(key)}, which is {kinds[0].words}: {error}"
    return skipped or ""


def _get_kind(tensor: TensorInfo) -> _TensorKind:
    values_shape = _get_values_shape(tensor)
    return _make_kind(
        tensor.layout,
        tensor.dtype,
        tensor.wrapper,
        tensor.is_on_meta,
        values_shape,
        is_expanded=False,
    )


def _get_target_kind(tensor: TensorInfo) -> _TensorKind:
    is_expanded = 0 in tensor.stride and any(
        size > 1 and not step for size, step in zip(tensor.shape, tensor.stride, strict=False)
    )
    values_shape = _get_values_shape(tensor)
    return _make_kind(
        tensor.layout,
        tensor.dtype,
        tensor.wrapper,
        is_on_meta=tensor.is_on_meta,  # as the constructor made it: a build on meta does not count
        values_shape=values_shape,
        is_expanded=is_expanded,
    )


def _copy_into_lazy(shape: tuple[int, ...]) -> str:
    """Return what torch raises for a tensor of this shape in a module that is not lazy itself.

    It has no code that makes room for the values, and torch copies them into no elements.
    """
    make: Callable[..., Tensor] = nn.parameter.UninitializedParameter
    target = make(requires_grad=False, device="meta")
    try:
        with torch.no_grad():
            target.copy_(torch.empty(shape, device="meta"))
    except RuntimeError as error:
        return summarize_message(str(error))
    return ""


@lru_cache(maxsize=1024)
def _make_kind(*fields: Any, **named_fields: Any) -> _TensorKind:
    """Return the kind with these fields, the same object for the same fields."""
    return _TensorKind(*fields, **named_fields)


def _get_values_shape(tensor: TensorInfo) -> tuple[int, ...]:
    if tensor.layout in _LAYOUTS:
        return ()
    return next((part.tensor.shape for part in tensor.parts if part.name == "values"), ())


class _CopyProbe:
    """Copies one tensor of each pair of kinds; loads the file once, if a kind needs it."""

    def __init__(self, diff: ModuleDiff, targets: Mapping[str, Tensor]) -> None:
        """Make a probe of copies into `targets`: the module's parameters and buffers by key."""
        self.targets = targets
        self._diff = diff

    def find_error(self, key: str, kind: _TensorKind, module_kind: _TensorKind) -> str | Skipped:
        """Return what copying `key` raises, "" if nothing; Skipped if it could not be tried."""
        source, target = _make_sample(kind), _make_sample(module_kind)
        try:
            if source is None or target is None:
                source, target = self._get_source(key, kind), self._copy_target(key, module_kind)
        except (ReadError, UserCodeError) as error:
            reason = error.reason if isinstance(error, ReadError) else str(error)
            return Skipped(
                f"copying {quote_code(key)}", f"it is {kind.words}, and its file {reason}"
            )
        try:
            with warnings.catch_warnings(), user_code(), torch.no_grad():
                warnings.simplefilter("ignore")
                shapes = source.shape, target.shape  # torch compares them first
                if source.layout is torch.jagged and shapes[0] != shapes[1]:
                    return "each jagged tensor has a ragged size of its own: pass assign=True"
                target.copy_(source)
        except UserCodeError as error:
            return summarize_message(error.text)
        return ""

    def _get_source(self, key: str, kind: _TensorKind) -> Tensor:
        """Return the file's tensor, or zeros in its place if it is a dense one.

        Raises:
            ReadError: torch cannot load the file, or too much would have to be read.
        """
        info = self._diff.state.tensors[key]
        zeros = None
        if not kind.is_on_meta and _is_dense(kind):
            if info.nbytes > count_loadable_bytes():
                raise ReadError(self._diff.checkpoint.path, f"has {info.nbytes} bytes for it")
            zeros = _make_zeros(info.shape, kind.dtype)
        if zeros is None:
            if not isinstance(tensor := self._torch_state.get(key), Tensor):
                raise ReadError(
                    self._diff.checkpoint.path, f"has no tensor {quote_code(key)} for torch"
                )
            return tensor
        return zeros

    def _copy_target(self, key: str, kind: _TensorKind) -> Tensor:
        """Return a copy of the module's own tensor, on the CPU unless its constructor made it meta.

        Raises:
            UserCodeError: the code of its class raised.
        """
        with user_code():
            target = self.targets[key].detach()
            is_stand_in = target.is_meta and not kind.is_on_meta
            return torch.empty_like(target, device="cpu") if is_stand_in else target.clone()

    @cached_property
    def _torch_state(self) -> Mapping[str, Any]:
        """The state as torch.load gives it, mapped into memory.

        Raises:
            ReadError: torch refuses the file, or would have to read it whole.
        """
        checkpoint, state = self._diff.checkpoint, self._diff.state
        if self._diff.is_planned:
            raise ReadError(checkpoint.path, "is yet to be written")
        if any(tensor.wrapper.startswith(_DTENSOR_MODULE) for tensor in state.tensors.values()):
            # Its import tells torch.load(weights_only=True) to allow the class.
            import_module(_DTENSOR_MODULE)
        mapped = can_be_mapped(checkpoint)
        if not mapped and (
            checkpoint.nbytes > count_loadable_bytes() or isinstance(checkpoint.path, RemotePath)
        ):
            raise ReadError(checkpoint.path, "would have to be loaded completely")
        return load_with_torch(checkpoint, state.at, mapped=mapped)


def _make_sample(kind: _TensorKind) -> Tensor | None:
    """Return a tensor of one element; None for kinds that only their own code can make."""
    dtype = getattr(torch, kind.dtype, None)
    if kind.wrapper or not isinstance(dtype, torch.dtype):
        return None
    if kind.is_on_meta:
        return torch.empty(1, 1, dtype=dtype, device="meta")
    set_layout = _LAYOUTS.get(kind.layout)
    if set_layout is None:
        return None
    zeros = _make_zeros((1, 1), kind.dtype)
    if zeros is None:
        return None
    sample = set_layout(zeros)
    return sample.expand(2, 1) if kind.is_expanded else sample


def _make_zeros(shape: tuple[int, ...], dtype: str) -> Tensor | None:
    """Return zeros; None for a quantized dtype, which torch does not fill without a scale."""
    try:
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    except (NotImplementedError, RuntimeError):
        return None


def _is_dense(kind: _TensorKind) -> bool:
    return kind.layout in _DENSE_LAYOUTS and not kind.wrapper
