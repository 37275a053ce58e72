"""Checkpoint -> CheckpointStatistics: statistics of the values of all its tensors."""

from collections.abc import Mapping

from msgspec import Struct

from ckptool.model import Checkpoint, Skipped, TensorInfo, all_tensors, join_key
from ckptool.values.progress import start_step
from ckptool.values.statistics import (
    TensorStatistics,
    statistics_unavailable_reason,
)
from ckptool.values.statistics_many import compute_statistics_many


class CheckpointStatistics(Struct, frozen=True):
    """Statistics of the values of all tensors in a checkpoint."""

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorInfo]
    """Tensors of all states, by key prefixed with the state's `at`."""
    statistics: Mapping[str, TensorStatistics]
    """By the same keys, for tensors whose statistics could be computed."""
    optimizer_keys: frozenset[str]
    """Keys of tensors in optimizer states."""
    skipped: tuple[Skipped, ...]


def compute_checkpoint_statistics(checkpoint: Checkpoint) -> CheckpointStatistics:
    """Compute statistics of all tensors of a checkpoint, for the rules CK401 to CK405.

    Reads every byte of the tensors once, in threads, in bounded memory.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    tensors = all_tensors(checkpoint)
    nbytes = sum(state.nbytes for state in checkpoint.states)
    start_step(f"reading values of {checkpoint.path.name}", nbytes)
    results = dict(zip(tensors, compute_statistics_many(tensors.values()), strict=True))
    statistics = {key: result for key, result in results.items() if result is not None}
    optimizer_states = [s for s in checkpoint.states if s.role == "optimizer"]
    return CheckpointStatistics(
        checkpoint,
        tensors,
        statistics,
        frozenset(join_key(s.at, key) for s in optimizer_states for key in s.tensors),
        tuple(
            Skipped(f"values of {key}", statistics_unavailable_reason(tensors[key]))
            for key, result in results.items()
            if result is None
        ),
    )
