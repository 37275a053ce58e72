"""Checkpoint -> CheckpointTensors: its tensors, lazily, without executing it."""

from pathlib import Path
from typing import TYPE_CHECKING

from ckptool.commands.target import PathLike, open_checkpoint_or_stdin, reject_invalid_path
from ckptool.compare.states import find_loaded_state, list_model_states, require_state_or_part
from ckptool.errors import NoStateError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import parse_location
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import Checkpoint, StateDict
from ckptool.phrases import MAX_NAMED, join_limited, quote_code

if TYPE_CHECKING:
    from ckptool.loading.checkpoint_tensors import CheckpointTensors


def tensors(
    path: PathLike, *, at: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> "CheckpointTensors":
    """Return the tensors of a checkpoint as a read-only mapping; no tensor is read before its use.

    Nothing in the file is executed. A local file is mapped into memory, so that a tensor takes no
    memory of its own; of a remote file, a tensor is read when it is asked for.

    Args:
        path: a file, a folder of shards, a distributed checkpoint, or a URL.
        at: dotted place of the state in the file ("model", "optimizer"); None takes the only model,
            or the one in the usual place.
        limits: bounds on the memory and time that reading the file may take.

    Raises:
        ReadError: it cannot be read.
        NoStateError: it has no tensors there, or several states and no usual place.
    """
    from ckptool.loading.checkpoint_tensors import CheckpointTensors

    source_guard = guard_source(path)
    checkpoint = open_checkpoint_or_stdin(path, limits)
    state = _find_only_state(checkpoint) if at is None else require_state_or_part(checkpoint, at)
    if not state.tensors:
        place = "" if at is None else f" at `{at}`"
        raise NoStateError(f"{checkpoint.path}: there are no tensors{place}")
    return CheckpointTensors(checkpoint, state, source_guard, limits)


def guard_source(path: PathLike) -> SourceGuard:
    """Return a guard that knows the files at `path` as they are now; it knows no remote file.

    Raises:
        ReadError: a folder cannot be listed.
        UsageError: `path` is not a path.
    """
    reject_invalid_path(path)
    source_guard = SourceGuard()
    location = parse_location(path)
    if isinstance(location, Path):
        is_index = location.name.endswith(".json") or location.name == ".metadata"
        source_guard.add_path(location.parent if is_index else location)
    return source_guard


def _find_only_state(checkpoint: Checkpoint) -> StateDict:
    """Return the model's state: the only one, or that in the usual place.

    Raises:
        NoStateError: there are several, and none is in the usual place.
    """
    states = [state for state in list_model_states(checkpoint) if state.tensors]
    usual_state = find_loaded_state(checkpoint)
    if len(states) > 1 and usual_state is None:
        places = join_limited([state.at or "." for state in states], MAX_NAMED, quote_code)
        raise NoStateError(f"{checkpoint.path}: has states at {places}: name one with at=")
    return usual_state or (states[0] if states else StateDict("", {}))
