"""TensorInfo -> TensorStatistics: one streamed pass over the values, in bounded memory."""

from collections.abc import Iterable, Iterator
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.values.elements import iter_elements, unreadable_reason
from ckptool.values.fingerprint import fingerprint_chunks
from ckptool.values.numbers import COMPONENT_DTYPES, HALF_DTYPES, NUMBER_DTYPES

if TYPE_CHECKING:
    from ckptool.values.number_arrays import NumberArray

_MAX_DISTINCT: Final = 2
_HEAD_ELEMENTS: Final = 1024
_BLOCK_ELEMENTS: Final = 1 << 16
"""Elements in memory at once: enough for the arithmetic to outweigh the calls, and few enough for
the CPU cache."""


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

    def merge(self, other: "CastEffect") -> "CastEffect":
        """Return the effect on the values of both."""
        return CastEffect(
            self.numel + other.numel,
            self.changed_count + other.changed_count,
            self.overflowed_count + other.overflowed_count,
            max(self.max_relative_change, other.max_relative_change),
        )


def statistics_unavailable_reason(tensor: TensorInfo) -> str:
    """Return why statistics of a tensor cannot be computed; "" if they can."""
    if tensor.parts and tensor.layout != "chunked":
        return f"it is laid out as {tensor.layout}"
    if tensor.dtype not in NUMBER_DTYPES:
        return f"elements of dtype {tensor.dtype} are packed or quantised"
    return unreadable_reason(tensor)


def compute_statistics(tensor: TensorInfo) -> TensorStatistics | None:
    """Return the statistics of a tensor; None if `statistics_unavailable_reason` is not "".

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    import numpy as np

    if statistics_unavailable_reason(tensor):
        return None
    accumulator = _StatisticsAccumulator(tensor.dtype)
    with np.errstate(all="ignore"):
        for numbers in _iter_numbers(tensor):
            accumulator.add_numbers(numbers)
    return accumulator.build_statistics()


def measure_cast(tensor: TensorInfo, dtype: str) -> CastEffect | None:
    """Return the effect of casting a tensor to `dtype`, as load_state_dict does.

    Returns:
        None if `statistics_unavailable_reason` is not "", or no element of `dtype` is a number.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    import numpy as np

    if statistics_unavailable_reason(tensor) or dtype not in NUMBER_DTYPES:
        return None
    effect = CastEffect(0, 0, 0, 0.0)
    with np.errstate(all="ignore"):
        for numbers in _iter_numbers(tensor):
            effect = effect.merge(_measure_cast(numbers, tensor.dtype, dtype))
    return effect


def _measure_cast(numbers: "NumberArray", dtype: str, target_dtype: str) -> CastEffect:
    import numpy as np

    from ckptool.values.number_arrays import cast_numbers, count_true

    cast = cast_numbers(numbers, target_dtype)
    round_trip = cast_numbers(cast, dtype)
    x = numbers.astype(np.complex128 if numbers.dtype.kind == "c" else np.float64)
    y, finite_mask = round_trip.astype(x.dtype), np.isfinite(x)
    changed_mask = (numbers != round_trip) & ~(np.isnan(x) & np.isnan(y))
    overflowed_mask = finite_mask & ~np.isfinite(cast.astype(np.complex128))
    changes = (np.abs(y - x) / np.abs(x))[changed_mask & finite_mask]
    return CastEffect(
        x.size,
        count_true(changed_mask),
        count_true(overflowed_mask),
        float(changes[np.isfinite(changes)].max(initial=0.0)),
    )


def half_precision_fingerprints(tensor: TensorInfo, dtypes: Iterable[str]) -> dict[str, str]:
    """Return dtype -> fingerprint of the tensor cast to it, for each of `dtypes`."""
    from ckptool.values.number_arrays import cast_numbers

    return {
        dtype: fingerprint_chunks(
            dtype,
            tensor.shape,
            (cast_numbers(numbers, dtype).tobytes() for numbers in _iter_numbers(tensor)),
        )
        for dtype in dtypes
    }


def _iter_numbers(tensor: TensorInfo) -> "Iterator[NumberArray]":
    """Yield the values in blocks, in C order."""
    from ckptool.values.number_arrays import view_numbers

    itemsize = DTYPE_BITS[tensor.dtype] // 8
    remainder = b""
    for piece in iter_elements(tensor):
        data = remainder + piece if remainder else piece
        whole_nbytes = len(data) // itemsize * itemsize
        remainder = data[whole_nbytes:]
        for start in range(0, whole_nbytes, _BLOCK_ELEMENTS * itemsize):
            end = min(whole_nbytes, start + _BLOCK_ELEMENTS * itemsize)
            yield view_numbers(memoryview(data)[start:end], tensor.dtype)


class _StatisticsAccumulator:
    """Accumulates TensorStatistics over consecutive blocks of values."""

    def __init__(self, dtype: str) -> None:
        from ckptool.values.number_arrays import find_smallest_normal

        self._smallest_normal = find_smallest_normal(COMPONENT_DTYPES.get(dtype, dtype))
        self._exact_half_dtypes = (
            set(HALF_DTYPES) if dtype in {"float32", "float64"} else set[str]()
        )
        self._distinct_values: set[float] | None = set()
        self._numel = self._nan_count = self._infinite_count = self._denormal_count = 0
        self._first_nonfinite = -1
        self._minimum, self._maximum, self._smallest_magnitude = inf, -inf, inf

    def add_numbers(self, numbers: "NumberArray") -> None:
        """Add a block; a complex number counts as two, its components."""
        import numpy as np

        from ckptool.values.number_arrays import count_true, to_comparable_reals

        reals = to_comparable_reals(numbers)
        # A short head is mostly enough.
        for block in (reals[:_HEAD_ELEMENTS], reals[_HEAD_ELEMENTS:]):
            if block.size and (self._exact_half_dtypes or self._distinct_values is not None):
                self._update_distinct_and_halves(block)
        lowest, highest = float(reals.min()), float(reals.max())
        if not (isfinite(lowest) and isfinite(highest)):  # both propagate NaN
            finite_mask = np.isfinite(reals)
            if self._first_nonfinite < 0:
                self._first_nonfinite = self._numel + int(finite_mask.argmin())
            nan_count = count_true(np.isnan(reals))
            self._nan_count += nan_count
            self._infinite_count += reals.size - count_true(finite_mask) - nan_count
            self._numel += reals.size
            reals = reals[finite_mask]
            if not reals.size:
                return
            lowest, highest = float(reals.min()), float(reals.max())
        else:
            self._numel += reals.size
        self._minimum, self._maximum = min(self._minimum, lowest), max(self._maximum, highest)
        self._update_magnitudes(reals)

    def _update_distinct_and_halves(self, reals: "NumberArray") -> None:
        """Update the distinct values and the half dtypes that represent all values exactly."""
        import numpy as np

        from ckptool.values.number_arrays import fits_dtype

        for name in tuple(self._exact_half_dtypes):
            if not fits_dtype(reals, name).all():
                self._exact_half_dtypes.discard(name)
        while self._distinct_values is not None:
            new_mask = ~np.isnan(reals)
            for value in self._distinct_values:
                new_mask &= reals != value
            if not new_mask.any():
                return
            self._distinct_values.add(reals[new_mask.argmax()].item())
            if len(self._distinct_values) > _MAX_DISTINCT:
                self._distinct_values = None

    def _update_magnitudes(self, reals: "NumberArray") -> None:
        from ckptool.values.number_arrays import compute_magnitudes, count_true

        magnitudes = compute_magnitudes(reals)
        smallest = float(magnitudes.min())
        if smallest == 0:
            magnitudes = magnitudes[magnitudes != 0]
            smallest = float(magnitudes.min(initial=inf))
        self._smallest_magnitude = min(self._smallest_magnitude, smallest)
        if smallest < self._smallest_normal:
            self._denormal_count += count_true(magnitudes < self._smallest_normal)

    def build_statistics(self) -> TensorStatistics:
        has_finite = self._minimum <= self._maximum
        return TensorStatistics(
            numel=self._numel,
            nan_count=self._nan_count,
            infinite_count=self._infinite_count,
            first_nonfinite=self._first_nonfinite,
            minimum=self._minimum if has_finite else nan,
            maximum=self._maximum if has_finite else nan,
            smallest_magnitude=self._smallest_magnitude,
            denormal_count=self._denormal_count,
            exact_half_dtypes=frozenset(self._exact_half_dtypes),
            distinct_values=None
            if self._distinct_values is None
            else tuple(sorted(self._distinct_values)),
        )
