"""Compressed storages of a zip archive -> inflated storages in an AnonymousFile."""

from msgspec.structs import replace

from ckptool.formats.files import open_source
from ckptool.formats.limits import Limits
from ckptool.formats.torch_zip import Records
from ckptool.formats.zips import read_archive, read_member
from ckptool.migration.memory import Memory
from ckptool.model import Checkpoint, Container, State, StorageInfo, TensorInfo


def inflated(checkpoint: Checkpoint, memory: Memory, limits: Limits) -> Checkpoint:
    """Return the checkpoint with a span for every storage; unchanged if none is compressed.

    Raises:
        CorruptCheckpointError: a record cannot be inflated within the limits.
    """
    lacking = {
        tensor.storage
        for state in checkpoint.states
        for tensor in (*state.tensors.values(), *state.unsaved.values())
        if tensor.storage is not None and tensor.storage.span is None and _is_filled(tensor)
    }
    if checkpoint.container is not Container.TORCH_ZIP or not lacking:
        return checkpoint
    found: dict[StorageInfo, StorageInfo] = {}
    with open_source(checkpoint.path) as source:
        records = Records(source, read_archive(source, limits), limits)
        for storage in lacking:
            member = records[f"data/{storage.key}"]
            data = read_member(source, member, limits, member.nbytes)
            found[storage] = replace(storage, span=memory.keep(data))
    states = tuple(_with_spans(state, found) for state in checkpoint.states)
    return replace(checkpoint, states=states)


def _is_filled(tensor: TensorInfo) -> bool:
    return tensor.device != "meta" and bool(tensor.numel)


def _with_spans(state: State, found: dict[StorageInfo, StorageInfo]) -> State:
    def put(tensor: TensorInfo) -> TensorInfo:
        storage = found.get(tensor.storage) if tensor.storage else None
        return replace(tensor, storage=storage) if storage else tensor

    return replace(
        state,
        tensors={key: put(tensor) for key, tensor in state.tensors.items()},
        unsaved={key: put(tensor) for key, tensor in state.unsaved.items()},
    )
