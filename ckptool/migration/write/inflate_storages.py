"""Compressed storages of a zip archive -> inflated storages in an AnonymousFile."""

from msgspec.structs import replace

from ckptool.formats.files.source import open_source
from ckptool.formats.limits import Limits
from ckptool.formats.torch.archive_records import ArchiveRecords
from ckptool.formats.zip.archive import read_archive, read_member
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.model import Checkpoint, Container, StateDict, StorageInfo, TensorInfo


def inflate_storages(
    checkpoint: Checkpoint, anonymous_file: AnonymousFile, limits: Limits
) -> Checkpoint:
    """Return the checkpoint with a span for every storage; unchanged if none is compressed.

    Raises:
        CorruptCheckpointError: a record cannot be inflated within the limits.
    """
    compressed_storages = {
        tensor.storage
        for state in checkpoint.states
        for tensor in (*state.tensors.values(), *state.unsaved_tensors.values())
        if tensor.storage is not None and _is_compressed(tensor.storage) and _has_data(tensor)
    }
    if checkpoint.container is not Container.TORCH_ZIP or not compressed_storages:
        return checkpoint
    replacements: dict[StorageInfo, StorageInfo] = {}
    with open_source(checkpoint.path) as source:
        records = ArchiveRecords(source, read_archive(source, limits), limits)
        for storage in compressed_storages:
            member = records[f"data/{storage.key}"]
            data = read_member(source, member, limits, member.nbytes)
            replacements[storage] = replace(storage, span=anonymous_file.add_bytes(data))
    states = tuple(_replace_storages(state, replacements) for state in checkpoint.states)
    return replace(checkpoint, states=states)


def _is_compressed(storage: StorageInfo) -> bool:
    return storage.span is None and storage.content is None


def _has_data(tensor: TensorInfo) -> bool:
    return tensor.device != "meta" and bool(tensor.numel)


def _replace_storages(state: StateDict, replacements: dict[StorageInfo, StorageInfo]) -> StateDict:
    def replace_storage(tensor: TensorInfo) -> TensorInfo:
        storage = replacements.get(tensor.storage) if tensor.storage else None
        return replace(tensor, storage=storage) if storage else tensor

    return replace(
        state,
        tensors={key: replace_storage(tensor) for key, tensor in state.tensors.items()},
        unsaved_tensors={
            key: replace_storage(tensor) for key, tensor in state.unsaved_tensors.items()
        },
    )
