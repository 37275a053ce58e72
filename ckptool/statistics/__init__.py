"""Pairs of TensorInfos -> ValueDifferences: streamed in bounded memory, with torch if it pays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool import elements, values
from ckptool.model import BITS, TensorInfo
from ckptool.statistics import plain, tensors
from ckptool.statistics.allowance import ALLOWANCE
from ckptool.statistics.figures import Figures, Partial, Tolerances, total
from ckptool.workers import Batch, Workers

__all__ = ["Figures", "Tolerances", "measure_many", "obstacle"]

_BLOCK: Final = 1 << 15
"""Elements of each side in memory at once: below torch's threshold for using several threads, and
small enough for the CPU cache."""
_PIECE: Final = 1 << 22
"""Elements per task: contiguous tensors are split at this size, small ones grouped up to it."""
_BATCH: Final = 256
"""Maximum number of tensors, or pieces of tensors, of one task."""

Pair = tuple[TensorInfo, TensorInfo]


class _Question(Struct, frozen=True):
    position: int
    old: TensorInfo
    new: TensorInfo
    tolerances: Tolerances


def obstacle(old: TensorInfo, new: TensorInfo) -> str:
    """Return why the difference of two tensors cannot be measured; "" if it can."""
    if old.shape != new.shape:
        return "the shapes differ"
    for tensor in (old, new):
        if tensor.layout not in {"strided", "chunked"}:
            return f"it is laid out as {tensor.layout}"
        if tensor.dtype not in tensors.MEASURED:
            return f"elements of dtype {tensor.dtype} are packed or quantised"
        if why := elements.obstacle(tensor):
            return why
    return ""


def measure_many(
    pairs: Iterable[Pair], tolerances: Tolerances, workers: Workers | None = None
) -> list[Figures]:
    """Return the ValueDifference of each pair, in order; `unmeasurable_reason` of each must be "".

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    together = list(pairs)
    found: list[list[Partial]] = [[] for _ in together]
    batches = _batches(together, tolerances)
    for questions, partials in (workers or Workers()).each(_answer, batches):
        for question, partial in zip(questions, partials, strict=True):
            found[question.position].append(partial)
    return [
        total(partials, old.dtype != new.dtype)
        for partials, (old, new) in zip(found, together, strict=True)
    ]


def _batches(pairs: Sequence[Pair], tolerances: Tolerances) -> Iterator[Batch[_Question]]:
    batch: list[_Question] = []
    elements = nbytes = 0
    for position, pair in enumerate(pairs):
        for old, new in values.pieces(*pair, _PIECE):
            batch.append(_Question(position, old, new, tolerances))
            elements += old.numel
            nbytes += old.nbytes
            if elements >= _PIECE or len(batch) >= _BATCH:
                yield nbytes, batch
                batch, elements, nbytes = [], 0, 0
    if batch:
        yield nbytes, batch


def _answer(folder: Path, questions: Sequence[_Question]) -> list[Partial]:
    return [_measured(question, folder) for question in questions]


def _measured(question: _Question, folder: Path) -> Partial:
    old, new = question.old, question.new
    measured = Partial()
    for one, other in values.aligned(old, new, _BLOCK, folder):
        measure = _way(one, other, old.dtype, new.dtype)
        measured += measure(one, other, old.dtype, new.dtype, question.tolerances)
    return measured


_Measure = Callable[[bytes, bytes, str, str, Tolerances], Partial]


def _way(one: bytes, other: bytes, old_dtype: str, new_dtype: str) -> _Measure:
    """Return the backend: pure Python while it costs less than the import of torch would."""
    if old_dtype != new_dtype or old_dtype not in plain.MEASURED:
        return tensors.measure
    cost = plain.cost(one, other, len(one) * 8 // BITS[old_dtype])
    return plain.measure if ALLOWANCE.grants(cost) else tensors.measure
