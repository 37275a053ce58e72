"""Operations on tensors: they change shape, strides, offsets or ties, and move no bytes.

A transposed tensor is the same bytes with other strides, a split one has other offsets, a
concatenated one consists of chunks. `cast` is computed by `tensor_bytes.py` during the write;
`bake` stores a product.
"""

from fnmatch import fnmatchcase
from math import prod
from typing import ClassVar

from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.migration.plan.draft import (
    READABLE_LAYOUTS,
    Draft,
    PlannedTensor,
    get_item,
    match_keys,
    require_layout,
)
from ckptool.migration.plan.operation import IrreversibleError, Operation, OperationContext
from ckptool.migration.plan.torch_arithmetic import multiply
from ckptool.model import DTYPE_BITS, StorageInfo, TensorComponent, TensorInfo, contiguous_stride
from ckptool.values import equality

FLOAT_DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
     "float8_e4m3fnuz", "float8_e5m2fnuz"}
)  # fmt: skip
"""Dtypes that `cast` converts from and to: no integer, bool or complex dtypes."""


class CastTensors(Operation, frozen=True, kw_only=True, tag="cast"):
    """Convert the floating point tensors that match `keys` to `dtype`, except those in `keep`."""

    dtype: str
    """torch dtype name without the prefix, for example "bfloat16"."""
    keys: str = "*"
    """Glob of keys."""
    keep: tuple[str, ...] = ()
    """Globs of keys that are not converted."""
    data_loss: ClassVar[str] = "precision, if the new dtype has less"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        if self.dtype not in FLOAT_DTYPES:
            raise PlanError(f"cast: `{self.dtype}` is not one of {', '.join(sorted(FLOAT_DTYPES))}")
        matched_keys = [
            key for key in match_keys(draft, self.keys) if self._is_castable(key, draft.items[key])
        ]
        if not matched_keys:
            raise PlanError(f"cast `{self.keys}`: no floating point tensor matches")
        items = dict(draft.items)
        for key in matched_keys:
            item = items[key]
            if item.dtype != self.dtype:
                require_layout("cast", key, item, READABLE_LAYOUTS)
                items[key] = item.cast(self.dtype)
        return replace(draft, items=items)

    def build_inverse(self) -> Operation:
        raise IrreversibleError(f"cast `{self.keys}`: what {self.dtype} cannot represent is lost")

    @property
    def before_after_text(self) -> tuple[str, str]:
        exceptions_text = f" but {', '.join(self.keep)}" if self.keep else ""
        return f"{self.keys}{exceptions_text}", self.dtype

    def _is_castable(self, key: str, item: PlannedTensor) -> bool:
        return item.dtype in FLOAT_DTYPES and not any(fnmatchcase(key, glob) for glob in self.keep)


class ReshapeTensor(Operation, frozen=True, kw_only=True, tag="reshape"):
    """Change the shape of the tensor `key`, with equal numel; `was` is for the reverse."""

    key: str
    shape: tuple[int, ...]
    was: tuple[int, ...] | None = None

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        item = get_item("reshape", draft, self.key)
        actual_shape = item.tensor.shape
        if self.was is not None and self.was != actual_shape:
            raise PlanError(
                f"reshape `{self.key}`: it is {list(actual_shape)}, not {list(self.was)}"
            )
        if prod(self.shape) != item.tensor.numel:
            raise PlanError(
                f"reshape `{self.key}`: {list(actual_shape)} does not fit {list(self.shape)}"
            )
        if not item.tensor.is_contiguous:
            raise PlanError(
                f"reshape `{self.key}`: its elements are not contiguous: compact it first"
            )
        stride = contiguous_stride(self.shape)
        return _replace_tensor(
            draft, self.key, replace(item.tensor, shape=self.shape, stride=stride), item
        )

    def build_inverse(self) -> Operation:
        if self.was is None:
            raise IrreversibleError(f"reshape `{self.key}`: the plan does not record its old shape")
        return ReshapeTensor(key=self.key, shape=self.was, was=self.shape)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return f"{self.key} {list(self.was)}" if self.was else self.key, str(list(self.shape))


class TransposeTensor(Operation, frozen=True, kw_only=True, tag="transpose"):
    """Swap two dimensions of the tensor `key`."""

    key: str
    dims: tuple[int, int] = (0, 1)

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        item = get_item("transpose", draft, self.key)
        a, b = (_normalize_dim("transpose", self.key, item, dim) for dim in self.dims)
        order = list(range(len(item.tensor.shape)))
        order[a], order[b] = order[b], order[a]
        shape = tuple(item.tensor.shape[n] for n in order)
        stride = tuple(item.tensor.stride[n] for n in order)
        return _replace_tensor(
            draft, self.key, replace(item.tensor, shape=shape, stride=stride), item
        )

    def build_inverse(self) -> Operation:
        return TransposeTensor(key=self.key, dims=self.dims)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return self.key, f"dimensions {self.dims[0]} and {self.dims[1]} swapped"


class SplitTensor(Operation, frozen=True, kw_only=True, tag="split"):
    """Split the tensor `key` along `dim` into the tensors `into`, evenly or by `sizes`."""

    key: str
    into: tuple[str, ...]
    dim: int = 0
    sizes: tuple[int, ...] = ()

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        item = get_item("split", draft, self.key)
        dim = _normalize_dim("split", self.key, item, self.dim)
        sizes = self._resolve_sizes(item.tensor.shape[dim])
        items = {key: other_item for key, other_item in draft.items.items() if key != self.key}
        start = 0
        for key, size in zip(self.into, sizes, strict=True):
            if key in items or key in draft.non_tensor_keys:
                raise PlanError(f"split `{self.key}`: the file already has `{key}`")
            piece = _narrow_tensor(item.tensor, dim, start, size)
            items[key] = PlannedTensor(piece, item.casts, own_storage=True)
            start += size
        return replace(draft, items=items)

    def build_inverse(self) -> Operation:
        return ConcatTensors(keys=self.into, into=self.key, dim=self.dim, sizes=self.sizes)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return self.key, ", ".join(self.into)

    def _resolve_sizes(self, total_size: int) -> tuple[int, ...]:
        count = len(self.into)
        sizes = self.sizes
        if not sizes and count and total_size % count == 0:
            sizes = (total_size // count,) * count
        if len(sizes) != count or sum(sizes) != total_size or any(size < 0 for size in sizes):
            raise PlanError(
                f"split `{self.key}`: {total_size} along dimension {self.dim} does not divide "
                f"into {count} pieces{f' of {list(self.sizes)}' if self.sizes else ' of one size'}"
            )
        return sizes


class ConcatTensors(Operation, frozen=True, kw_only=True, tag="concat"):
    """Concatenate the tensors `keys` along `dim` to `into`; `sizes` is for the reverse."""

    keys: tuple[str, ...]
    into: str
    dim: int = 0
    sizes: tuple[int, ...] = ()

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        items = [get_item("concat", draft, key, READABLE_LAYOUTS) for key in self.keys]
        if not items:
            raise PlanError(f"concat to `{self.into}`: no tensors were given")
        first = items[0]
        dim = _normalize_dim("concat", self.keys[0], first, self.dim)
        for key, item in zip(self.keys, items, strict=True):
            self._check_piece(key, item, first, dim)
        remaining = {key: item for key, item in draft.items.items() if key not in self.keys}
        if self.into in remaining or self.into in draft.non_tensor_keys:
            raise PlanError(f"concat to `{self.into}`: the file already has that key")
        tensor = _concat_tensors(self.into, [item.tensor for item in items], dim)
        return replace(draft, items={**remaining, self.into: PlannedTensor(tensor, first.casts)})

    def build_inverse(self) -> Operation:
        return SplitTensor(key=self.into, into=self.keys, dim=self.dim, sizes=self.sizes)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return ", ".join(self.keys), self.into

    def _check_piece(self, key: str, item: PlannedTensor, first: PlannedTensor, dim: int) -> None:
        actual_shape, expected_shape = list(item.tensor.shape), list(first.tensor.shape)
        if self.sizes and actual_shape[dim : dim + 1] != [self.sizes[self.keys.index(key)]]:
            raise PlanError(f"concat to `{self.into}`: `{key}` does not have the given size")
        actual_shape[dim : dim + 1], expected_shape[dim : dim + 1] = [], []
        same_dtype = (item.tensor.dtype, item.casts) == (first.tensor.dtype, first.casts)
        if (
            actual_shape != expected_shape
            or not same_dtype
            or len(item.tensor.shape) != len(first.tensor.shape)
        ):
            raise PlanError(f"concat to `{self.into}`: `{key}` does not fit `{self.keys[0]}`")


class TieTensors(Operation, frozen=True, kw_only=True, tag="tie"):
    """Tie `key` to the tensor `to`, which must have equal values: they share a storage."""

    key: str
    to: str

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        target = get_item("tie", draft, self.to)
        current_item = draft.items.get(self.key)
        if current_item is not None and self.key != self.to:
            is_equal = current_item.casts == target.casts and equality.are_equal(
                current_item.tensor, target.tensor
            )
            if not is_equal:
                raise PlanError(f"tie `{self.key}`: its values differ from those of `{self.to}`")
        shared_item = replace(target, own_storage=False)
        return replace(draft, items={**draft.items, self.key: shared_item, self.to: shared_item})

    def build_inverse(self) -> Operation:
        return UntieTensor(key=self.key, of=self.to)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return self.key, f"shares {self.to}"


class UntieTensor(Operation, frozen=True, kw_only=True, tag="untie"):
    """Give `key` a storage of its own, a copy of the shared one; `of` is for the reverse."""

    key: str
    of: str = ""

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        item = get_item("untie", draft, self.key)
        other_items = (other_item for key, other_item in draft.items.items() if key != self.key)
        storage = item.tensor.storage
        if item.own_storage or not any(
            other_item.tensor.storage == storage and not other_item.own_storage
            for other_item in other_items
        ):
            raise PlanError(f"untie `{self.key}`: it shares nothing")
        return _replace_tensor(draft, self.key, item.tensor, item, own_storage=True)

    def build_inverse(self) -> Operation:
        if not self.of:
            raise IrreversibleError(f"untie `{self.key}`: the plan does not record what it shared")
        return TieTensors(key=self.key, to=self.of)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return self.key, "separate"


class BakeMask(Operation, frozen=True, kw_only=True, tag="bake"):
    """Multiply `original` by `mask` to the tensor `key`, as pruning does in each forward pass."""

    key: str
    original: str
    mask: str
    data_loss: ClassVar[str] = "the masked values, and the mask"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        original, mask = (
            get_item("bake", draft, key, READABLE_LAYOUTS) for key in (self.original, self.mask)
        )
        remaining = {
            key: item for key, item in draft.items.items() if key not in {self.original, self.mask}
        }
        if self.key in remaining or self.key in draft.non_tensor_keys:
            raise PlanError(f"bake `{self.key}`: the file already has that key")
        if original.casts or mask.casts:
            raise PlanError(f"bake `{self.key}`: bake first, then cast the result")
        tensors = (original.tensor, mask.tensor)
        (dtype, shape), (mask_dtype, mask_shape) = ((t.dtype, t.shape) for t in tensors)
        if (dtype, shape) != (mask_dtype, mask_shape):
            raise PlanError(
                f"bake `{self.key}`: `{self.original}` is {dtype} {list(shape)} and `{self.mask}`"
                f" {mask_dtype} {list(mask_shape)}"
            )
        product = context.compute_tensor(f"bake `{self.key}`", self.key, multiply, tensors)
        return replace(draft, items={**remaining, self.key: PlannedTensor(product)})

    def build_inverse(self) -> Operation:
        raise IrreversibleError(f"bake `{self.key}`: the masked values are lost")

    @property
    def before_after_text(self) -> tuple[str, str]:
        return f"{self.original}, {self.mask}", self.key


class CompactViews(Operation, frozen=True, kw_only=True, tag="compact"):
    """Write the views that match `keys` without the rest of their larger storages."""

    keys: str = "*"
    data_loss: ClassVar[str] = "the elements of storages that no tensor uses"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        view_keys = [
            key for key in match_keys(draft, self.keys) if _is_partial_view(draft.items[key].tensor)
        ]
        if not view_keys:
            raise PlanError(f"compact `{self.keys}`: none is a view of a larger storage")
        items = {
            key: replace(item, source_key="") if key in view_keys else item
            for key, item in draft.items.items()
        }
        return replace(draft, items=items)

    def build_inverse(self) -> Operation:
        raise IrreversibleError(f"compact `{self.keys}`: the unused parts of the storages are lost")

    @property
    def before_after_text(self) -> tuple[str, str]:
        return self.keys, "without the unused parts of their storages"


def _narrow_tensor(tensor: TensorInfo, dim: int, start: int, size: int) -> TensorInfo:
    """Return the view `start` to `start + size` along `dim`, like torch.narrow."""
    shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
    offset = tensor.storage_offset + (start * tensor.stride[dim] if prod(shape) else 0)
    return replace(tensor, shape=shape, storage_offset=offset)


def _concat_tensors(key: str, tensors: list[TensorInfo], dim: int) -> TensorInfo:
    """Return the chunked tensor that concatenates `tensors` along `dim`, like torch.cat."""
    components, start, rank = [], 0, len(tensors[0].shape)
    for tensor in tensors:
        chunks = tensor.parts or (TensorComponent("", (0,) * rank, tensor),)
        for chunk in chunks:
            offsets = tuple(offset + start * (n == dim) for n, offset in enumerate(chunk.offsets))
            components.append(TensorComponent("", offsets, chunk.tensor))
        start += tensor.shape[dim]
    first = tensors[0]
    shape = (*first.shape[:dim], start, *first.shape[dim + 1 :])
    nbytes = prod(shape) * DTYPE_BITS[first.dtype] // 8
    storage = StorageInfo(f"joined {key}", nbytes)
    return TensorInfo(
        key,
        shape,
        first.dtype,
        contiguous_stride(shape),
        0,
        storage,
        layout="chunked",
        parts=tuple(components),
    )


def _normalize_dim(op: str, key: str, item: PlannedTensor, dim: int) -> int:
    rank = len(item.tensor.shape)
    if not -rank <= dim < rank:
        raise PlanError(f"{op} `{key}`: it has {rank} dimensions and no dimension {dim}")
    return dim % rank


def _replace_tensor(
    draft: Draft, key: str, tensor: TensorInfo, item: PlannedTensor, *, own_storage: bool = False
) -> Draft:
    new_item = replace(
        item, tensor=tensor, source_key="", own_storage=own_storage or item.own_storage
    )
    return replace(draft, items={**draft.items, key: new_item})


def _is_partial_view(tensor: TensorInfo) -> bool:
    storage = tensor.storage
    return tensor.layout == "strided" and storage is not None and storage.nbytes > tensor.nbytes
