"""TensorInfos -> fingerprints, read and hashed in threads or on a cluster."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ckptool.model import Span, TensorInfo
from ckptool.values import fingerprint
from ckptool.values.batches.batch_runner import JOBS, BatchRunner
from ckptool.values.batches.work_batches import find_digestible_span, group_into_batches
from ckptool.values.elements import (
    CHUNK,
    OpenFiles,
    has_component_tensors,
    iter_elements_from,
    split_span,
    unreadable_reason,
)

_DigestTask = tuple[int, TensorInfo | None, Span | None]
"""(position of a tensor, the whole tensor or None for a piece of it, the span to digest).

The span is None if the elements are not those of one span, in order.
"""


def fingerprint_tensor(tensor: TensorInfo) -> str | None:
    """Return the content fingerprint of a tensor; None if it cannot be read without torch.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    with OpenFiles() as files:
        return _fingerprint_tensor(tensor, files)


def fingerprint_many(
    tensors: Iterable[TensorInfo], jobs: int = JOBS, runner: BatchRunner | None = None
) -> list[str | None]:
    """Return `fingerprint_tensor` of each, in order, None as there; large ones are split."""
    tensor_list = list(tensors)
    fingerprints: list[str | None] = [None] * len(tensor_list)
    pieces: dict[int, list[bytes]] = {}
    tasks = (
        item
        for position, tensor_info in enumerate(tensor_list)
        for item in _iter_digest_tasks(position, tensor_info)
    )
    for items, batch_digests in (runner or BatchRunner(jobs)).map_batches(
        _digest_batch, group_into_batches(tasks)
    ):
        for (position, *_), digest in zip(items, batch_digests, strict=True):
            if isinstance(digest, bytes):
                pieces.setdefault(position, []).append(digest)
            else:
                fingerprints[position] = digest
    for position, digests in pieces.items():
        tensor = tensor_list[position]
        fingerprints[position] = fingerprint.combine_piece_digests(
            tensor.dtype, tensor.shape, digests
        )
    return fingerprints


def _fingerprint_tensor(tensor: TensorInfo, files: OpenFiles) -> str | None:
    if unreadable_reason(tensor):
        return None
    return fingerprint.fingerprint_chunks(tensor.dtype, tensor.shape, _iter_content(tensor, files))


def _iter_content(tensor: TensorInfo, files: OpenFiles) -> Iterator[bytes]:
    """Yield the elements' bytes; each component is preceded by its name, dtype and shape."""
    if not has_component_tensors(tensor):
        yield from iter_elements_from(tensor, files)
        return
    for part in tensor.parts:
        yield f"{part.name} {part.tensor.dtype}{list(part.tensor.shape)}".encode()
        yield from _iter_content(part.tensor, files)


def _iter_digest_tasks(position: int, tensor: TensorInfo) -> Iterator[tuple[int, _DigestTask]]:
    """Yield (bytes read, task) for a tensor."""
    contiguous = find_digestible_span(tensor)
    if contiguous is None or tensor.nbytes <= fingerprint.PIECE:
        yield tensor.nbytes, (position, tensor, contiguous if tensor.nbytes else None)
        return
    for span in split_span(contiguous, fingerprint.PIECE):
        yield span.nbytes, (position, None, span)


def _digest_batch(folder: Path, tasks: Sequence[_DigestTask]) -> list[bytes | str | None]:
    """Return the digest (bytes) of each span and the fingerprint (str, None) of each tensor."""
    with OpenFiles(folder) as files:
        return [_run_digest(tensor, span, files) for _, tensor, span in tasks]


def _run_digest(
    tensor: TensorInfo | None, span: Span | None, files: OpenFiles
) -> bytes | str | None:
    if tensor is None:
        assert span is not None
        return next(fingerprint.iter_piece_digests(files.iter_chunks(span)))
    if span is None:
        return _fingerprint_tensor(tensor, files)
    chunks = (files.read_span(span),) if span.nbytes <= CHUNK else files.iter_chunks(span)
    return fingerprint.fingerprint_chunks(tensor.dtype, tensor.shape, chunks)
