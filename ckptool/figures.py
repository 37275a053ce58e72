"""TensorInfo -> TensorStatistics: one streamed pass over the values, in bounded memory."""

import os
from collections.abc import Iterable, Iterator
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.content import fingerprint
from ckptool.elements import elements, obstacle
from ckptool.model import BITS, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

_JOBS: Final = min(8, os.cpu_count() or 1)
_COMPONENT: Final = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
_WIDER: Final = {"bool": "uint8", "uint16": "int32", "uint32": "int64"}
"""Dtype that torch cannot compute with -> dtype of the same values (8-bit floats: float32)."""
_HALVES: Final = ("bfloat16", "float16")
_DISTINCT: Final = 2
_HEAD: Final = 1024


class Figures(Struct, frozen=True):
    """Statistics of the values of one tensor; non-finite values are only counted."""

    numel: int
    nan: int
    infinite: int
    first: int
    """Position, in C order, of the first non-finite value; -1 if all are finite."""
    minimum: float
    """Of the finite values, as all that follow; nan if there are none."""
    maximum: float
    mean: float
    variance: float
    """Population variance (divided by n)."""
    smallest: float
    """Smallest non-zero magnitude; inf if all are zero."""
    denormals: int
    halves: frozenset[str]
    """Which of bfloat16 and float16 represent all values of a float32 or float64 tensor exactly."""
    distinct: tuple[float, ...] | None
    """The distinct values, infinities included, if there are at most two; else None."""

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def constant(self) -> float | None:
        """The value of all elements; None if they differ or one is NaN."""
        alone = self.distinct is not None and len(self.distinct) == 1 and not self.nan
        return self.distinct[0] if alone and self.distinct else None

    def all_are(self, number: float) -> bool:
        return self.constant == number


class Cast(Struct, frozen=True):
    """Effect of a cast to another dtype on the values."""

    numel: int
    changed: int
    overflowed: int
    """Number of finite values that become non-finite."""
    relative: float
    """Largest relative change, abs(new - old) / abs(old)."""


def unreadable(tensor: TensorInfo) -> str:
    """Return why statistics of a tensor cannot be computed; "" if they can."""
    if tensor.parts and tensor.layout != "chunked":
        return f"it is laid out as {tensor.layout}"
    if not _known(tensor.dtype):
        return f"{tensor.dtype} is no dtype to calculate with"
    return obstacle(tensor)


def figures(tensor: TensorInfo) -> Figures | None:
    """Return the statistics of a tensor; None if `statistics_unavailable_reason` is not "".

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    if unreadable(tensor):
        return None
    gathered = _Gathering(tensor.dtype)
    for numbers in _numbers(tensor):
        gathered.add(numbers)
    return gathered.done()


def figures_many(tensors: Iterable[TensorInfo], jobs: int = _JOBS) -> list[Figures | None]:
    """Return `compute_statistics` of each tensor, in order, using `jobs` threads."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    # One torch thread per worker thread: more would oversubscribe the cores.
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(figures, tensors))
    finally:
        torch.set_num_threads(before)


def cast(tensor: TensorInfo, dtype: str) -> Cast | None:
    """Return the effect of casting a tensor to `dtype`, as load_state_dict does.

    Returns:
        None if `statistics_unavailable_reason` is not "", or torch cannot compute with `dtype`.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    import torch

    if unreadable(tensor) or not _known(dtype):
        return None
    target: torch.dtype = getattr(torch, dtype)
    numel = changed = overflowed = 0
    relative = 0.0
    for numbers in _numbers(tensor):
        there = numbers.to(target)
        after, before = there.to(numbers.dtype), numbers
        differ = (before != after) & ~(before.isnan() & after.isnan())
        numel += before.numel()
        changed += int(differ.sum())
        if not differ.any():
            continue
        finite = before.isfinite()
        if target.is_floating_point:
            overflowed += int((finite & ~there.to(torch.float64).isfinite()).sum())
        x, y = (side[differ & finite].double() for side in (before, after))
        share = ((y - x).abs() / x.abs()).nan_to_num(0.0, 0.0, 0.0)
        relative = max(relative, float(share.max()) if share.numel() else 0.0)
    return Cast(numel, changed, overflowed, relative)


def halved(tensor: TensorInfo, dtypes: Iterable[str]) -> dict[str, str]:
    """Return dtype -> fingerprint of the tensor cast to it, for each of `dtypes`."""
    import torch

    found: dict[str, str] = {}
    for dtype in dtypes:
        pieces = (_bytes(n.to(getattr(torch, dtype))) for n in _numbers(tensor))
        found[dtype] = fingerprint(dtype, tensor.shape, pieces)
    return found


def _bytes(tensor: "Tensor") -> bytes:
    from ctypes import string_at

    return string_at(tensor.data_ptr(), tensor.numel() * tensor.itemsize)


def _known(dtype: str) -> bool:
    import torch

    named = dtype == "bool" or dtype.startswith(("float", "bfloat", "int", "uint", "complex"))
    odd = dtype == "uint64" or dtype.endswith(("e8m0fnu", "_x2")) or BITS.get(dtype, 1) % 8 != 0
    return named and not odd and isinstance(getattr(torch, dtype, None), torch.dtype)


def _numbers(tensor: TensorInfo) -> "Iterator[Tensor]":
    """Yield the values as 1-d tensors, in C order, in a dtype that torch can compute with."""
    import torch

    name = _COMPONENT.get(tensor.dtype, tensor.dtype)
    dtype: torch.dtype = getattr(torch, name)
    wider = "float32" if name.startswith("float8") else _WIDER.get(name, name)
    rest = b""
    for piece in elements(tensor):
        data = bytearray(rest + piece if rest else piece)
        whole = len(data) // dtype.itemsize * dtype.itemsize
        rest = bytes(data[whole:])
        if whole:
            flat = torch.frombuffer(data, dtype=torch.uint8)[:whole].view(dtype)
            yield flat.to(getattr(torch, wider))


class _Gathering:
    """Accumulates TensorStatistics over consecutive blocks of values."""

    def __init__(self, dtype: str) -> None:
        import torch

        plain: torch.dtype = getattr(torch, _COMPONENT.get(dtype, dtype))
        self._tiny = torch.finfo(plain).tiny if plain.is_floating_point else 0.0
        self._halves = set(_HALVES) if dtype in {"float32", "float64"} else set[str]()
        self._distinct: set[float] | None = set()
        self._numel = self._nan = self._infinite = self._denormals = self._finite = 0
        self._first = -1
        self._minimum, self._maximum, self._smallest = inf, -inf, inf
        self._mean = self._squares = 0.0

    def add(self, numbers: "Tensor") -> None:
        for part in (numbers[:_HEAD], numbers[_HEAD:]):  # a short head is mostly enough
            if part.numel() and (self._halves or self._distinct is not None):
                self._compare(part)
        lowest, highest = map(float, numbers.aminmax())
        if not (isfinite(lowest) and isfinite(highest)):  # aminmax propagates NaN
            finite = numbers.isfinite()
            if self._first < 0:
                self._first = self._numel + int((~finite).nonzero()[0])
            nans = int(numbers.isnan().sum())
            self._nan += nans
            self._infinite += numbers.numel() - int(finite.sum()) - nans
            self._numel += numbers.numel()
            numbers = numbers[finite]
            if not numbers.numel():
                return
            lowest, highest = map(float, numbers.aminmax())
        else:
            self._numel += numbers.numel()
        self._minimum, self._maximum = min(self._minimum, lowest), max(self._maximum, highest)
        self._measure(numbers)

    def _compare(self, numbers: "Tensor") -> None:
        """Update the distinct values and the half dtypes that represent all values exactly."""
        import torch

        for name in tuple(self._halves):
            back = numbers.to(getattr(torch, name)).to(numbers.dtype)
            if not bool(((back == numbers) | numbers.isnan()).all()):
                self._halves.discard(name)
        while self._distinct is not None:
            new = ~numbers.isnan()
            for known in self._distinct:
                new &= numbers != known
            if not new.any():
                return
            self._distinct.add(float(numbers[new.to(torch.uint8).argmax()]))
            if len(self._distinct) > _DISTINCT:
                self._distinct = None

    def _measure(self, numbers: "Tensor") -> None:
        exact = numbers.double()
        magnitudes = numbers.abs() if numbers.is_floating_point() else exact.abs()
        least = float(magnitudes.amin())
        if least == 0:
            magnitudes = magnitudes[magnitudes != 0]
            least = float(magnitudes.amin()) if magnitudes.numel() else inf
        self._smallest = min(self._smallest, least)
        if least < self._tiny:
            self._denormals += int((magnitudes < self._tiny).sum())
        # Chan, Golub and LeVeque: merge the means and sums of squared deviations of two sets.
        count, mean = exact.numel(), float(exact.mean())
        exact -= mean  # in place: for float64 it aliases `numbers`, which is not used below
        squares = float(exact.dot(exact))
        total, apart = self._finite + count, mean - self._mean
        self._mean += apart * count / total
        self._squares += squares + apart * apart * self._finite * count / total
        self._finite = total

    def done(self) -> Figures:
        some = self._finite > 0
        return Figures(
            numel=self._numel,
            nan=self._nan,
            infinite=self._infinite,
            first=self._first,
            minimum=self._minimum if some else nan,
            maximum=self._maximum if some else nan,
            mean=self._mean if some else nan,
            variance=self._squares / self._finite if some else nan,
            smallest=self._smallest,
            denormals=self._denormals,
            halves=frozenset(self._halves),
            distinct=None if self._distinct is None else tuple(sorted(self._distinct)),
        )
