"""TensorInfo -> TensorStatistics: one streamed pass over the values, in bounded memory."""

from collections.abc import Iterable, Iterator
from functools import cache
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.values.elements import iter_elements, unreadable_reason
from ckptool.values.fingerprint import fingerprint_chunks
from ckptool.values.torch_bytes import copy_tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

_COMPONENT_DTYPE: Final = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
_WIDER_DTYPE: Final = {"bool": "uint8", "uint16": "int32", "uint32": "int64"}
"""Dtype that torch cannot compute with -> dtype of the same values (8-bit floats: float32)."""
HALF_DTYPES: Final = ("bfloat16", "float16")
_MAX_DISTINCT: Final = 2
_HEAD_ELEMENTS: Final = 1024


class TensorStatistics(Struct, frozen=True, gc=False):
    """Statistics of the values of one tensor; non-finite values are only counted."""

    numel: int
    nan_count: int
    infinite_count: int
    first_nonfinite: int
    """Position, in C order, of the first non-finite value; -1 if all are finite."""
    minimum: float
    """Of the finite values, as all that follow; nan if there are none."""
    maximum: float
    mean: float
    variance: float
    """Population variance (divided by n)."""
    smallest_magnitude: float
    """Smallest non-zero magnitude; inf if all are zero."""
    denormal_count: int
    exact_half_dtypes: frozenset[str]
    """Which of bfloat16 and float16 represent all values of a float32 or float64 tensor exactly."""
    distinct_values: tuple[float, ...] | None
    """The distinct values, infinities included, if there are at most two; else None."""

    @property
    def largest_magnitude(self) -> float:
        """Largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def constant_value(self) -> float | None:
        """The value of all elements; None if they differ or one is NaN."""
        is_single = (
            self.distinct_values is not None
            and len(self.distinct_values) == 1
            and not self.nan_count
        )
        return self.distinct_values[0] if is_single and self.distinct_values else None

    def is_constant(self, number: float) -> bool:
        return self.constant_value == number


class CastEffect(Struct, frozen=True):
    """Effect of a cast to another dtype on the values."""

    numel: int
    changed_count: int
    overflowed_count: int
    """Number of finite values that become non-finite."""
    max_relative_change: float
    """Largest relative change, abs(new - old) / abs(old)."""


def statistics_unavailable_reason(tensor: TensorInfo) -> str:
    """Return why statistics of a tensor cannot be computed; "" if they can."""
    if tensor.parts and tensor.layout != "chunked":
        return f"it is laid out as {tensor.layout}"
    if not is_computable_dtype(tensor.dtype):
        return f"{tensor.dtype} is not a dtype that supports arithmetic"
    return unreadable_reason(tensor)


def compute_statistics(tensor: TensorInfo) -> TensorStatistics | None:
    """Return the statistics of a tensor; None if `statistics_unavailable_reason` is not "".

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    if statistics_unavailable_reason(tensor):
        return None
    accumulator = _StatisticsAccumulator(tensor.dtype)
    for numbers in _iter_numbers(tensor):
        accumulator.add_numbers(numbers)
    return accumulator.build_statistics()


def measure_cast(tensor: TensorInfo, dtype: str) -> CastEffect | None:
    """Return the effect of casting a tensor to `dtype`, as load_state_dict does.

    Returns:
        None if `statistics_unavailable_reason` is not "", or torch cannot compute with `dtype`.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    import torch

    if statistics_unavailable_reason(tensor) or not is_computable_dtype(dtype):
        return None
    target: torch.dtype = getattr(torch, dtype)
    numel = changed_count = overflowed_count = 0
    max_relative_change = 0.0
    for numbers in _iter_numbers(tensor):
        cast_numbers = numbers.to(target)
        round_trip, original = cast_numbers.to(numbers.dtype), numbers
        changed_mask = (original != round_trip) & ~(original.isnan() & round_trip.isnan())
        numel += original.numel()
        changed_count += int(changed_mask.sum())
        if not changed_mask.any():
            continue
        finite_mask = original.isfinite()
        if target.is_floating_point:
            overflowed_count += int(
                (finite_mask & ~cast_numbers.to(torch.float64).isfinite()).sum()
            )
        x, y = (values[changed_mask & finite_mask].double() for values in (original, round_trip))
        relative_change = ((y - x).abs() / x.abs()).nan_to_num(0.0, 0.0, 0.0)
        max_relative_change = max(
            max_relative_change, float(relative_change.max()) if relative_change.numel() else 0.0
        )
    return CastEffect(numel, changed_count, overflowed_count, max_relative_change)


def half_precision_fingerprints(tensor: TensorInfo, dtypes: Iterable[str]) -> dict[str, str]:
    """Return dtype -> fingerprint of the tensor cast to it, for each of `dtypes`."""
    import torch

    fingerprints: dict[str, str] = {}
    for dtype in dtypes:
        pieces = (copy_tensor_bytes(n.to(getattr(torch, dtype))) for n in _iter_numbers(tensor))
        fingerprints[dtype] = fingerprint_chunks(dtype, tensor.shape, pieces)
    return fingerprints


@cache
def is_computable_dtype(dtype: str) -> bool:
    """Whether torch computes with numbers of the dtype."""
    import torch

    is_numeric = dtype == "bool" or dtype.startswith(("float", "bfloat", "int", "uint", "complex"))
    is_unsupported = (
        dtype == "uint64" or dtype.endswith(("e8m0fnu", "_x2")) or DTYPE_BITS.get(dtype, 1) % 8 != 0
    )
    return (
        is_numeric and not is_unsupported and isinstance(getattr(torch, dtype, None), torch.dtype)
    )


def _iter_numbers(tensor: TensorInfo) -> "Iterator[Tensor]":
    """Yield the values as 1-d tensors, in C order, in a dtype that torch can compute with."""
    import torch

    itemsize = getattr(torch, _COMPONENT_DTYPE.get(tensor.dtype, tensor.dtype)).itemsize
    remainder = b""
    for piece in iter_elements(tensor):
        data = bytearray(remainder + piece if remainder else piece)
        whole_nbytes = len(data) // itemsize * itemsize
        remainder = bytes(data[whole_nbytes:])
        if whole_nbytes:
            yield view_numbers(memoryview(data)[:whole_nbytes], tensor.dtype)


def view_numbers(data: bytearray | memoryview, dtype: str) -> "Tensor":
    """Return elements as a 1-d tensor, in a dtype that torch can compute with.

    A complex number is two elements of its component's dtype.
    """
    import torch

    name = _COMPONENT_DTYPE.get(dtype, dtype)
    wider_dtype = "float32" if name.startswith("float8") else _WIDER_DTYPE.get(name, name)
    flat = torch.frombuffer(data, dtype=torch.uint8).view(getattr(torch, name))
    return flat.to(getattr(torch, wider_dtype))


class _StatisticsAccumulator:
    """Accumulates TensorStatistics over consecutive blocks of values."""

    def __init__(self, dtype: str) -> None:
        import torch

        plain: torch.dtype = getattr(torch, _COMPONENT_DTYPE.get(dtype, dtype))
        self._smallest_normal = torch.finfo(plain).tiny if plain.is_floating_point else 0.0
        self._exact_half_dtypes = (
            set(HALF_DTYPES) if dtype in {"float32", "float64"} else set[str]()
        )
        self._distinct_values: set[float] | None = set()
        self._numel = self._nan_count = self._infinite_count = self._denormal_count = (
            self._finite_count
        ) = 0
        self._first_nonfinite = -1
        self._minimum, self._maximum, self._smallest_magnitude = inf, -inf, inf
        self._mean = self._squared_deviations = 0.0

    def add_numbers(self, numbers: "Tensor") -> None:
        for block in (
            numbers[:_HEAD_ELEMENTS],
            numbers[_HEAD_ELEMENTS:],
        ):  # a short head is mostly enough
            if block.numel() and (self._exact_half_dtypes or self._distinct_values is not None):
                self._update_distinct_and_halves(block)
        lowest, highest = map(float, numbers.aminmax())
        if not (isfinite(lowest) and isfinite(highest)):  # aminmax propagates NaN
            finite_mask = numbers.isfinite()
            if self._first_nonfinite < 0:
                self._first_nonfinite = self._numel + int((~finite_mask).nonzero()[0])
            nan_count = int(numbers.isnan().sum())
            self._nan_count += nan_count
            self._infinite_count += numbers.numel() - int(finite_mask.sum()) - nan_count
            self._numel += numbers.numel()
            numbers = numbers[finite_mask]
            if not numbers.numel():
                return
            lowest, highest = map(float, numbers.aminmax())
        else:
            self._numel += numbers.numel()
        self._minimum, self._maximum = min(self._minimum, lowest), max(self._maximum, highest)
        self._update_moments(numbers)

    def _update_distinct_and_halves(self, numbers: "Tensor") -> None:
        """Update the distinct values and the half dtypes that represent all values exactly."""
        import torch

        for name in tuple(self._exact_half_dtypes):
            round_trip = numbers.to(getattr(torch, name)).to(numbers.dtype)
            if not bool(((round_trip == numbers) | numbers.isnan()).all()):
                self._exact_half_dtypes.discard(name)
        while self._distinct_values is not None:
            new_mask = ~numbers.isnan()
            for value in self._distinct_values:
                new_mask &= numbers != value
            if not new_mask.any():
                return
            self._distinct_values.add(float(numbers[new_mask.to(torch.uint8).argmax()]))
            if len(self._distinct_values) > _MAX_DISTINCT:
                self._distinct_values = None

    def _update_moments(self, numbers: "Tensor") -> None:
        exact = numbers.double()
        magnitudes = numbers.abs() if numbers.is_floating_point() else exact.abs()
        smallest = float(magnitudes.amin())
        if smallest == 0:
            magnitudes = magnitudes[magnitudes != 0]
            smallest = float(magnitudes.amin()) if magnitudes.numel() else inf
        self._smallest_magnitude = min(self._smallest_magnitude, smallest)
        if smallest < self._smallest_normal:
            self._denormal_count += int((magnitudes < self._smallest_normal).sum())
        # Chan, Golub and LeVeque: merge the means and sums of squared deviations of two sets.
        count, mean = exact.numel(), float(exact.mean())
        exact -= mean  # in place: for float64 it aliases `numbers`, which is not used below
        squared_deviations = float(exact.dot(exact))
        total_count, mean_delta = self._finite_count + count, mean - self._mean
        self._mean += mean_delta * count / total_count
        self._squared_deviations += (
            squared_deviations + mean_delta * mean_delta * self._finite_count * count / total_count
        )
        self._finite_count = total_count

    def build_statistics(self) -> TensorStatistics:
        has_finite = self._finite_count > 0
        return TensorStatistics(
            numel=self._numel,
            nan_count=self._nan_count,
            infinite_count=self._infinite_count,
            first_nonfinite=self._first_nonfinite,
            minimum=self._minimum if has_finite else nan,
            maximum=self._maximum if has_finite else nan,
            mean=self._mean if has_finite else nan,
            variance=self._squared_deviations / self._finite_count if has_finite else nan,
            smallest_magnitude=self._smallest_magnitude,
            denormal_count=self._denormal_count,
            exact_half_dtypes=frozenset(self._exact_half_dtypes),
            distinct_values=None
            if self._distinct_values is None
            else tuple(sorted(self._distinct_values)),
        )
