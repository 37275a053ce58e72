"""Operations on tensors: they change shape, strides, offsets or ties, and move no bytes.

A transposed tensor is the same bytes with other strides, a split one has other offsets, a
concatenated one consists of chunks. `cast` is computed by `tensor_bytes.py` during the write;
`bake` stores a product.
"""

from fnmatch import fnmatchcase
from math import prod
from typing import ClassVar

from msgspec.structs import replace

from ckptool import values
from ckptool.errors import PlanError
from ckptool.migration.draft import Draft, Item, c_order, matching, near
from ckptool.migration.ops import Facts, IrreversibleError, Operation
from ckptool.model import BITS, Part, StorageInfo, TensorInfo

FLOATS = frozenset(
    {"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
     "float8_e4m3fnuz", "float8_e5m2fnuz"}
)  # fmt: skip
"""Dtypes that `cast` converts from and to: no integer, bool or complex dtypes."""


class Cast(Operation, frozen=True, kw_only=True, tag="cast"):
    """Convert the floating point tensors that match `keys` to `dtype`, except those in `keep`."""

    dtype: str
    """torch dtype name without the prefix, for example "bfloat16"."""
    keys: str = "*"
    """Glob of keys."""
    keep: tuple[str, ...] = ()
    """Globs of keys that are not converted."""
    loses: ClassVar[str] = "precision, where the new dtype has less"

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        if self.dtype not in FLOATS:
            raise PlanError(f"cast: `{self.dtype}` is not one of {', '.join(sorted(FLOATS))}")
        found = [key for key in matching(draft, self.keys) if self._takes(key, draft.items[key])]
        if not found:
            raise PlanError(f"cast `{self.keys}`: no floating point tensor is called so")
        items = dict(draft.items)
        for key in found:
            item = items[key]
            if item.dtype != self.dtype:
                _checked("cast", key, item)
                items[key] = replace(item, casts=(*item.casts, self.dtype), origin="")
        return replace(draft, items=items)

    def reversed(self) -> Operation:
        raise IrreversibleError(f"cast `{self.keys}`: what {self.dtype} cannot hold is gone")

    @property
    def words(self) -> tuple[str, str]:
        kept = f" but {', '.join(self.keep)}" if self.keep else ""
        return f"{self.keys}{kept}", self.dtype

    def _takes(self, key: str, item: Item) -> bool:
        return item.dtype in FLOATS and not any(fnmatchcase(key, glob) for glob in self.keep)


class Reshape(Operation, frozen=True, kw_only=True, tag="reshape"):
    """Change the shape of the tensor `key`, with equal numel; `was` is for the reverse."""

    key: str
    shape: tuple[int, ...]
    was: tuple[int, ...] | None = None

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        item = _item("reshape", draft, self.key)
        have = item.tensor.shape
        if self.was is not None and self.was != have:
            raise PlanError(f"reshape `{self.key}`: it is {list(have)}, not {list(self.was)}")
        if prod(self.shape) != item.tensor.numel:
            raise PlanError(f"reshape `{self.key}`: {list(have)} does not fit {list(self.shape)}")
        if not item.tensor.contiguous:
            raise PlanError(f"reshape `{self.key}`: its elements lie apart: compact it first")
        stride = c_order(self.shape)
        return _put(draft, self.key, replace(item.tensor, shape=self.shape, stride=stride), item)

    def reversed(self) -> Operation:
        if self.was is None:
            raise IrreversibleError(f"reshape `{self.key}`: the plan does not say its old shape")
        return Reshape(key=self.key, shape=self.was, was=self.shape)

    @property
    def words(self) -> tuple[str, str]:
        return f"{self.key} {list(self.was)}" if self.was else self.key, str(list(self.shape))


class Transpose(Operation, frozen=True, kw_only=True, tag="transpose"):
    """Swap two dimensions of the tensor `key`."""

    key: str
    dims: tuple[int, int] = (0, 1)

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        item = _item("transpose", draft, self.key)
        a, b = (_dim("transpose", self.key, item, dim) for dim in self.dims)
        order = list(range(len(item.tensor.shape)))
        order[a], order[b] = order[b], order[a]
        shape = tuple(item.tensor.shape[n] for n in order)
        stride = tuple(item.tensor.stride[n] for n in order)
        return _put(draft, self.key, replace(item.tensor, shape=shape, stride=stride), item)

    def reversed(self) -> Operation:
        return Transpose(key=self.key, dims=self.dims)

    @property
    def words(self) -> tuple[str, str]:
        return self.key, f"dimensions {self.dims[0]} and {self.dims[1]} swapped"


class Split(Operation, frozen=True, kw_only=True, tag="split"):
    """Split the tensor `key` along `dim` into the tensors `into`, evenly or by `sizes`."""

    key: str
    into: tuple[str, ...]
    dim: int = 0
    sizes: tuple[int, ...] = ()

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        item = _item("split", draft, self.key)
        dim = _dim("split", self.key, item, self.dim)
        sizes = self._sizes(item.tensor.shape[dim])
        rest = {key: kept for key, kept in draft.items.items() if key != self.key}
        start = 0
        for key, size in zip(self.into, sizes, strict=True):
            if key in rest or key in draft.others:
                raise PlanError(f"split `{self.key}`: the file has `{key}` already")
            piece = narrowed(item.tensor, dim, start, size)
            rest[key] = Item(piece, item.casts, alone=True)
            start += size
        return replace(draft, items=rest)

    def reversed(self) -> Operation:
        return Concat(keys=self.into, into=self.key, dim=self.dim, sizes=self.sizes)

    @property
    def words(self) -> tuple[str, str]:
        return self.key, ", ".join(self.into)

    def _sizes(self, whole: int) -> tuple[int, ...]:
        count = len(self.into)
        sizes = self.sizes
        if not sizes and count and whole % count == 0:
            sizes = (whole // count,) * count
        if len(sizes) != count or sum(sizes) != whole or any(size < 0 for size in sizes):
            raise PlanError(
                f"split `{self.key}`: {whole} along dimension {self.dim} does not make "
                f"{count} pieces{f' of {list(self.sizes)}' if self.sizes else ' of one size'}"
            )
        return sizes


class Concat(Operation, frozen=True, kw_only=True, tag="concat"):
    """Concatenate the tensors `keys` along `dim` to `into`; `sizes` is for the reverse."""

    keys: tuple[str, ...]
    into: str
    dim: int = 0
    sizes: tuple[int, ...] = ()

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        items = [_item("concat", draft, key) for key in self.keys]
        if not items:
            raise PlanError(f"concat to `{self.into}`: of no tensors")
        first = items[0]
        dim = _dim("concat", self.keys[0], first, self.dim)
        for key, item in zip(self.keys, items, strict=True):
            self._check(key, item, first, dim)
        rest = {key: item for key, item in draft.items.items() if key not in self.keys}
        if self.into in rest or self.into in draft.others:
            raise PlanError(f"concat to `{self.into}`: the file has that key already")
        whole = joined(self.into, [item.tensor for item in items], dim)
        return replace(draft, items={**rest, self.into: Item(whole, first.casts)})

    def reversed(self) -> Operation:
        return Split(key=self.into, into=self.keys, dim=self.dim, sizes=self.sizes)

    @property
    def words(self) -> tuple[str, str]:
        return ", ".join(self.keys), self.into

    def _check(self, key: str, item: Item, first: Item, dim: int) -> None:
        have, want = list(item.tensor.shape), list(first.tensor.shape)
        if self.sizes and have[dim : dim + 1] != [self.sizes[self.keys.index(key)]]:
            raise PlanError(f"concat to `{self.into}`: `{key}` is not of the size that is given")
        have[dim : dim + 1], want[dim : dim + 1] = [], []
        alike = (item.tensor.dtype, item.casts) == (first.tensor.dtype, first.casts)
        if have != want or not alike or len(item.tensor.shape) != len(first.tensor.shape):
            raise PlanError(f"concat to `{self.into}`: `{key}` does not fit `{self.keys[0]}`")


class Tie(Operation, frozen=True, kw_only=True, tag="tie"):
    """Tie `key` to the tensor `to`, which must have equal values: they share a storage."""

    key: str
    to: str

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        target = _item("tie", draft, self.to)
        have = draft.items.get(self.key)
        if have is not None and self.key != self.to:
            same = have.casts == target.casts and values.equal(have.tensor, target.tensor)
            if not same:
                raise PlanError(f"tie `{self.key}`: its values are not those of `{self.to}`")
        tied = replace(target, alone=False)
        return replace(draft, items={**draft.items, self.key: tied, self.to: tied})

    def reversed(self) -> Operation:
        return Untie(key=self.key, of=self.to)

    @property
    def words(self) -> tuple[str, str]:
        return self.key, f"shares {self.to}"


class Untie(Operation, frozen=True, kw_only=True, tag="untie"):
    """Give `key` a storage of its own, a copy of the shared one; `of` is for the reverse."""

    key: str
    of: str = ""

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        item = _item("untie", draft, self.key)
        others = (one for key, one in draft.items.items() if key != self.key)
        storage = item.tensor.storage
        if item.alone or not any(one.tensor.storage == storage and not one.alone for one in others):
            raise PlanError(f"untie `{self.key}`: it shares nothing")
        return _put(draft, self.key, item.tensor, item, alone=True)

    def reversed(self) -> Operation:
        if not self.of:
            raise IrreversibleError(f"untie `{self.key}`: the plan does not say what it shared")
        return Tie(key=self.key, to=self.of)

    @property
    def words(self) -> tuple[str, str]:
        return self.key, "on its own"


class Bake(Operation, frozen=True, kw_only=True, tag="bake"):
    """Multiply `original` by `mask` to the tensor `key`, as pruning does in each forward pass."""

    key: str
    original: str
    mask: str
    loses: ClassVar[str] = "the values that the mask hides, and the mask"

    def apply(self, draft: Draft, facts: Facts) -> Draft:
        original = _item("bake", draft, self.original)
        mask = _item("bake", draft, self.mask)
        rest = {k: i for k, i in draft.items.items() if k not in {self.original, self.mask}}
        if self.key in rest or self.key in draft.others:
            raise PlanError(f"bake `{self.key}`: the file has that key already")
        if original.casts or mask.casts:
            raise PlanError(f"bake `{self.key}`: bake first, and cast the result")
        value = facts.product(self.key, original.tensor, mask.tensor)
        return replace(draft, items={**rest, self.key: Item(value)})

    def reversed(self) -> Operation:
        raise IrreversibleError(f"bake `{self.key}`: what the mask hides is gone")

    @property
    def words(self) -> tuple[str, str]:
        return f"{self.original}, {self.mask}", self.key


class Compact(Operation, frozen=True, kw_only=True, tag="compact"):
    """Write the views that match `keys` without the rest of their larger storages."""

    keys: str = "*"
    loses: ClassVar[str] = "the elements of storages that no tensor shows"

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        found = [key for key in matching(draft, self.keys) if _is_part(draft.items[key].tensor)]
        if not found:
            raise PlanError(f"compact `{self.keys}`: none is a view of a larger storage")
        items = {
            key: replace(item, origin="") if key in found else item
            for key, item in draft.items.items()
        }
        return replace(draft, items=items)

    def reversed(self) -> Operation:
        raise IrreversibleError(f"compact `{self.keys}`: the rest of the storages is not there")

    @property
    def words(self) -> tuple[str, str]:
        return self.keys, "without the rest of their storages"


def narrowed(tensor: TensorInfo, dim: int, start: int, size: int) -> TensorInfo:
    """Return the view `start` to `start + size` along `dim`, like torch.narrow."""
    shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
    offset = tensor.storage_offset + (start * tensor.stride[dim] if prod(shape) else 0)
    return replace(tensor, shape=shape, storage_offset=offset)


def joined(key: str, tensors: list[TensorInfo], dim: int) -> TensorInfo:
    """Return the chunked tensor that concatenates `tensors` along `dim`, like torch.cat."""
    parts, start, rank = [], 0, len(tensors[0].shape)
    for tensor in tensors:
        offsets = tuple(start if n == dim else 0 for n in range(rank))
        parts.append(Part("", offsets, tensor))
        start += tensor.shape[dim]
    first = tensors[0]
    shape = (*first.shape[:dim], start, *first.shape[dim + 1 :])
    nbytes = prod(shape) * BITS[first.dtype] // 8
    storage = StorageInfo(f"joined {key}", nbytes)
    return TensorInfo(
        key, shape, first.dtype, c_order(shape), 0, storage, layout="chunked", parts=tuple(parts)
    )


def _item(op: str, draft: Draft, key: str) -> Item:
    item = draft.items.get(key)
    if item is None:
        raise PlanError(f"{op} `{key}`: the file has no tensor of that name{near(draft, key)}")
    return _checked(op, key, item)


def _checked(op: str, key: str, item: Item) -> Item:
    plain = {"strided", "chunked"} if op == "cast" else {"strided"}
    if item.tensor.layout not in plain or item.tensor.wrapper:
        kind = item.tensor.wrapper or item.tensor.layout
        raise PlanError(f"{op} `{key}`: it is {kind}, and only plain tensors can be changed")
    return item


def _dim(op: str, key: str, item: Item, dim: int) -> int:
    rank = len(item.tensor.shape)
    if not -rank <= dim < rank:
        raise PlanError(f"{op} `{key}`: it has {rank} dimensions and no dimension {dim}")
    return dim % rank


def _put(draft: Draft, key: str, tensor: TensorInfo, item: Item, *, alone: bool = False) -> Draft:
    changed = replace(item, tensor=tensor, origin="", alone=alone or item.alone)
    return replace(draft, items={**draft.items, key: changed})


def _is_part(tensor: TensorInfo) -> bool:
    storage = tensor.storage
    return tensor.layout == "strided" and storage is not None and storage.nbytes > tensor.nbytes
