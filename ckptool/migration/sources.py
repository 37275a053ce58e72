"""Source of an injected value (`file:PATH#KEY`, `constructor` ...) -> TensorInfo."""

import ctypes
import json
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from ckptool.elements import elements, obstacle
from ckptool.errors import PlanError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits
from ckptool.locations import Location, locate, masked
from ckptool.migration.draft import Draft, dotted
from ckptool.migration.memory import Memory
from ckptool.migration.npz import read_array
from ckptool.migration.ops import Inject
from ckptool.migration.watch import Watch
from ckptool.model import BITS, Checkpoint, Constancy, TensorInfo

if TYPE_CHECKING:
    from ckptool.migration.live import Live

FORMS: Final = (
    "attribute", "attribute:PATH", "constructor", "file:PATH#KEY", "npz:PATH#KEY",
    "literal:VALUE", "seed:N", "zeros",
)  # fmt: skip
"""Syntax of a source."""

_CODES: Final = {
    "float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h",
    "int8": "b", "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B", "bool": "?",
}  # fmt: skip
"""dtype -> format character of `struct`, for literals."""


class Sources:
    """Resolves the sources of injected values; opens each file once and caches results."""

    def __init__(
        self,
        live: "Live | None",
        donor: Location | None,
        memory: Memory,
        watch: Watch,
        limits: Limits,
    ) -> None:
        self._live = live
        self._donor = donor
        self._memory = memory
        self._limits = limits
        self._opened: dict[Location, Checkpoint] = {}
        self._known: dict[Inject, TensorInfo] = {}
        self._products: dict[tuple[TensorInfo, TensorInfo], TensorInfo] = {}
        self._watch = watch

    @property
    def expected(self) -> Mapping[str, TensorInfo] | None:
        """State_dict tensors of the module by key; None without a module."""
        if self._live is None:
            return None
        return {key: held.tensor for key, held in self._live.state.saved.items()}

    def value(self, op: Inject, draft: Draft) -> TensorInfo:
        """Return the description of the tensor that `op` injects, with dtype and shape checked.

        Raises:
            PlanError: the source has no such value, or none that is reproducible.
        """
        if op not in self._known:
            found = self._found(op, draft)
            _check(op, found, (self.expected or {}).get(op.key))
            self._known[op] = found
        return self._known[op]

    def attribute(self, path: str, draft: Draft) -> TensorInfo | None:
        """Return attribute `path` of the pickled module of the source or of `--from`, or None."""
        places: list[Mapping[str, TensorInfo]] = [draft.state.unsaved]
        if self._donor is not None:
            states = self._open(self._donor).states
            places += [state.unsaved for state in states] + [state.tensors for state in states]
        for place in places:
            if path in place:
                return place[path]
        # A plain list of layers that became a ModuleList: `layers[0].bias` is `layers.0.bias`.
        return next((t for p in places for key, t in p.items() if dotted(key) == path), None)

    def product(self, key: str, one: TensorInfo, other: TensorInfo) -> TensorInfo:
        """Return the description of the elementwise product, computed once.

        Raises:
            PlanError: a tensor cannot be read, or dtype or shape differ.
        """
        form = one.dtype, one.shape
        if form != (other.dtype, other.shape):
            raise PlanError(
                f"bake `{key}`: `{one.key}` is {one.dtype} {list(one.shape)} and `{other.key}` "
                f"{other.dtype} {list(other.shape)}"
            )
        for tensor in (one, other):
            if why := obstacle(tensor):
                raise PlanError(f"bake `{key}`: `{tensor.key}` cannot be read: {why}")
        if (one, other) not in self._products:
            data = _multiplied(one, other)
            self._products[one, other] = self._memory.tensor(key, one.dtype, one.shape, data)
        return self._products[one, other]

    def _found(self, op: Inject, draft: Draft) -> TensorInfo:
        kind, _, rest = op.source.partition(":")
        if kind == "attribute":
            return self._attribute(op, rest or op.key, draft)
        if kind == "constructor" and not rest:
            return self._constructor(op)
        if kind == "seed" and rest.isdecimal():
            return self._need_live(op).seeded(op.key, int(rest), self._memory)
        if kind == "file" and "#" in rest:
            return self._file(op, rest)
        if kind == "npz" and "#" in rest:
            path, _, name = rest.rpartition("#")
            archive = locate(path)
            self._watch.add(archive)
            return read_array(archive, name, self._memory, self._limits)
        if kind in {"literal", "zeros"}:
            return self._written(op, rest if kind == "literal" else "0")
        raise PlanError(f"inject `{op.key}`: {_shown(op)} is no source: {', '.join(FORMS)}")

    def _attribute(self, op: Inject, path: str, draft: Draft) -> TensorInfo:
        found = self.attribute(path, draft)
        if found is None:
            held = ", ".join(draft.state.unsaved) or "none"
            raise PlanError(
                f"inject `{op.key}`: no pickled module holds the attribute `{path}` (there: {held})"
            )
        return found

    def _constructor(self, op: Inject) -> TensorInfo:
        live = self._need_live(op)
        held = live.state.saved.get(op.key)
        if held is not None and held.constancy is Constancy.RANDOM:
            raise PlanError(
                f"inject `{op.key}`: its value differs each time {live.state.target} is built, so "
                "the constructor cannot bring it back; name another source with --inject"
            )
        return live.constructed(op.key, self._memory)

    def _need_live(self, op: Inject) -> "Live":
        if self._live is None:
            raise PlanError(f"inject `{op.key}`: its source {_shown(op)} needs a module (-m)")
        return self._live

    def _file(self, op: Inject, place: str) -> TensorInfo:
        name, _, key = place.partition("#")
        path = locate(name)
        for state in self._open(path).states:
            found = state.tensors.get(key) or state.unsaved.get(key)
            if found is not None:
                return found
        raise PlanError(f"inject `{op.key}`: {path} has no tensor {key!r}")

    def _open(self, path: Location) -> Checkpoint:
        if path not in self._opened:
            self._watch.add(path)
            self._opened[path] = open_checkpoint(path, self._limits)
        return self._opened[path]

    def _written(self, op: Inject, text: str) -> TensorInfo:
        """Build a tensor from a JSON literal; dtype and shape are `op`'s, else the module's."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise PlanError(f"inject `{op.key}`: {text!r} is no number or nested list") from error
        want = (self.expected or {}).get(op.key)
        flat = list(_leaves(value))
        if not flat or any(type(leaf) not in {int, float, bool} for leaf in flat):
            raise PlanError(f"inject `{op.key}`: {text!r} is made of something else than numbers")
        shape = op.shape if op.shape is not None else want.shape if want else _shape(value)
        dtype = op.dtype or (want.dtype if want else _dtype(flat))
        count = len(flat)
        size = _count(shape)
        if count not in {1, size}:
            raise PlanError(f"inject `{op.key}`: {count} numbers for the shape {list(shape)}")
        data = _packed(op, dtype, flat) * (size if count == 1 else 1)
        return self._memory.tensor(op.key, dtype, shape, data)


def _shown(op: Inject) -> str:
    return repr(masked(op.source))


def _multiplied(one: TensorInfo, other: TensorInfo) -> bytes:
    import torch

    if not one.numel:
        return b""
    a, b = (
        torch.frombuffer(bytearray(b"".join(elements(t))), dtype=getattr(torch, one.dtype))
        for t in (one, other)
    )
    product = a * b
    return ctypes.string_at(product.data_ptr(), product.nbytes)


def _packed(op: Inject, dtype: str, flat: list[float]) -> bytes:
    if not any(flat) and dtype in BITS:
        return bytes(len(flat) * BITS[dtype] // 8)
    if dtype == "bfloat16":
        # bfloat16 is the upper half of a float32; the lower half must be zero.
        wide = [struct.pack("<f", number) for number in flat]
        if all(word[:2] == b"\0\0" for word in wide):
            return b"".join(word[2:] for word in wide)
    code = _CODES.get(dtype)
    try:
        if code is not None:
            return struct.pack(f"<{len(flat)}{code}", *flat)
    except (struct.error, OverflowError) as error:
        raise PlanError(f"inject `{op.key}`: is no {dtype}: {error}") from error
    raise PlanError(f"inject `{op.key}`: a literal cannot be made {dtype} exactly")


def _leaves(value: object) -> Iterator[float]:
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    else:
        yield value  # type: ignore[misc]  # the caller looks


def _shape(value: object) -> tuple[int, ...]:
    return (len(value), *_shape(value[0])) if isinstance(value, list) and value else ()


def _dtype(flat: list[float]) -> str:
    if all(type(leaf) is bool for leaf in flat):
        return "bool"
    return "int64" if all(type(leaf) is int for leaf in flat) else "float32"


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _check(op: Inject, found: TensorInfo, want: TensorInfo | None) -> None:
    if why := obstacle(found):
        raise PlanError(f"inject `{op.key}`: its value in {_shown(op)} cannot be read: {why}")
    if op.dtype and op.dtype != found.dtype:
        raise PlanError(f"inject `{op.key}`: {_shown(op)} is {found.dtype}, not {op.dtype}")
    shape = op.shape if op.shape is not None else want.shape if want is not None else found.shape
    if shape != found.shape:
        raise PlanError(
            f"inject `{op.key}`: {_shown(op)} is {list(found.shape)} where {list(shape)} belongs"
        )
