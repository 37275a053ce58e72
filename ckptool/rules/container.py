"""Checkpoint -> hits: archives, storages, metadata and shards (CK306-CK314, CK322, CK601-CK603)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from ckptool.model import (
    Checkpoint,
    Container,
    IssueKind,
    StorageInfo,
    TensorInfo,
    natural_sort_key,
)
from ckptool.phrases import quote_shell
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


@check(
    Checkpoint,
    Rule(
        code="CK307",
        name="device-tag",
        level=Level.WARNING,
        summary="{count} tensors were saved on {key}",
        why=(
            "torch.load puts them back on that device and fails where there is none, or fills the "
            "first GPU's memory."
        ),
        fix='torch.load(path, map_location="cpu"), or save after module.cpu()',
        example="torch.save(model.cuda().state_dict(), path)",
    ),
)
def find_device_tags(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    tensor_counts = Counter(
        tensor.device
        for state in checkpoint.states
        for tensor in state.tensors.values()
        if not tensor.is_on_meta
    )
    for device, count in sorted(
        tensor_counts.items(), key=lambda entry: natural_sort_key(entry[0])
    ):
        if device != "cpu":
            yield hit(device, count=count)


_MIN_WASTE_NBYTES: Final = 4096
"""Bytes: waste of less than a memory page is not reported."""


@check(
    Checkpoint,
    Rule(
        code="CK308",
        name="storage-bloat",
        level=Level.WARNING,
        summary="`{key}` needs {needed} bytes and drags a storage of {stored} bytes into the file",
        why=(
            "torch.save writes the whole storage behind a view: a slice of a large tensor costs "
            "as much as the large tensor."
        ),
        fix="state_dict[{key:py}] = state_dict[{key:py}].clone() before saving",
        example='large = torch.zeros(250_000)\ntorch.save({"x": large[:10]}, path)  # 1 MB',
    ),
)
def find_bloated_storages(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.container in {Container.SAFETENSORS, Container.SHARDED_SAFETENSORS}:
        return
    if not any(_may_waste_storage(tensor) for tensor in _iter_all_tensors(checkpoint)):
        return
    for storage, tensors in _map_storage_to_tensors(checkpoint).items():
        needed_nbytes = min(
            sum(
                tensor.nbytes
                for tensor in {_build_view_key(tensor): tensor for tensor in tensors}.values()
            ),
            storage.nbytes,
        )
        if storage.nbytes - needed_nbytes > max(_MIN_WASTE_NBYTES, storage.nbytes // 2):
            keys = [tensor.key for tensor in tensors]
            yield hit(keys[0], needed=needed_nbytes, stored=storage.nbytes, keys=keys)


def _iter_all_tensors(checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    for state in checkpoint.states:
        yield from state.tensors.values()
        yield from state.unsaved_tensors.values()


def _may_waste_storage(tensor: TensorInfo) -> bool:
    """Whether the storage exceeds the tensor by a page or more; other tensors may use the rest."""
    storage = tensor.storage
    if storage is None or storage.nbytes <= _MIN_WASTE_NBYTES:
        return False
    return storage.nbytes > _MIN_WASTE_NBYTES + tensor.nbytes


def _map_storage_to_tensors(checkpoint: Checkpoint) -> Mapping[StorageInfo, list[TensorInfo]]:
    tensors_by_storage: dict[StorageInfo, list[TensorInfo]] = {}
    for tensor in _iter_all_tensors(checkpoint):
        if tensor.storage is not None:
            tensors_by_storage.setdefault(tensor.storage, []).append(tensor)
    return tensors_by_storage


def _build_view_key(tensor: TensorInfo) -> object:
    return tensor.dtype, tensor.storage_offset, tensor.shape, tensor.stride


@check(
    Checkpoint,
    Rule(
        code="CK310",
        name="safetensors-format-metadata-missing",
        level=Level.WARNING,
        summary="the header's __metadata__ has no `format`",
        why=(
            "transformers and accelerate read metadata()['format'] and fail with an "
            "AttributeError or refuse the file."
        ),
        fix='save_file(tensors, path, metadata={{"format": "pt"}})',
        example='save_file(model.state_dict(), path)  # without metadata={"format": "pt"}',
    ),
)
def find_missing_format_metadata(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.container is Container.SAFETENSORS and "format" not in checkpoint.metadata:
        yield hit("__metadata__")


@check(
    Checkpoint,
    Rule(
        code="CK312",
        name="noncontiguous",
        level=Level.NOTE,
        summary="`{key}`, {shape} with stride {stride}, is not contiguous",
        why=(
            "safetensors refuses to save it, and its bytes in the file are not in the order of "
            "its elements."
        ),
        fix="state_dict[{key:py}] = state_dict[{key:py}].contiguous()",
        example='torch.save({"w": torch.randn(2, 3).t()}, path)',
    ),
)
def find_noncontiguous_tensors(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state in checkpoint.states:
        for tensor in state.tensors.values():
            if (
                tensor.layout == "strided"
                and tensor.storage is not None
                and not tensor.is_contiguous
            ):
                yield hit(tensor.key, shape=list(tensor.shape), stride=list(tensor.stride))


@check(
    Checkpoint,
    Rule(
        code="CK313",
        name="archive-refused",
        level=Level.ERROR,
        summary="torch.load refuses the file",
        detail="{refusal}",
        why=(
            "A .pth file is a zip archive with all records in one folder. Unpacked and packed again"
            " by hand, or by a browser or an archiver, it may have no such folder, or files beside"
            " it. What pickle.dump and joblib.dump write is no such archive at all."
        ),
        fix="To write a file that torch.load opens: ckptool migrate {path} -o NEW.pth",
        example=(
            'with zipfile.ZipFile(path, "w") as archive:\n'
            '    for file in unpacked.rglob("*"):\n'
            "        archive.write(file, file.relative_to(unpacked))  # without the folder"
        ),
    ),
)
def find_archive_refusal(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.load_refusal:
        yield hit("", refusal=checkpoint.load_refusal, path=quote_shell(str(checkpoint.path)))


@check(
    Checkpoint,
    Rule(
        code="CK322",
        name="compressed-archive",
        level=Level.ERROR,
        summary="{count} tensors are compressed in the archive",
        detail="torch.load(mmap=True) takes the compressed bytes for values, without an error",
        why=(
            "torch.save stores its records as they are, and a memory map reads them so. An archive"
            " that was unpacked and packed again with compression loads without mmap, and with it"
            " as noise."
        ),
        fix="To write it without compression: ckptool migrate {path} -o NEW.pth",
        example=(
            'with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:\n'
            '    for file in unpacked.rglob("*"):\n'
            "        archive.write(file, file.relative_to(unpacked.parent))"
        ),
    ),
)
def find_compressed_archive(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.COMPRESSED:
            yield hit(issue.key, path=quote_shell(str(checkpoint.path)), **issue.facts)


def _iter_issue_hits(checkpoint: Checkpoint, kind: IssueKind) -> Iterator[RuleHit]:
    for issue in checkpoint.faults:
        if issue.kind is kind:
            yield hit(issue.key, **issue.facts)


@check(
    Checkpoint,
    Rule(
        code="CK306",
        name="not-a-checkpoint",
        level=Level.ERROR,
        summary="reading stopped",
        detail="{damage}",
        why=(
            "What stands behind the damage was not looked at. What was found before it is reported."
        ),
        fix="Do not load the file; get it again from where it came from.",
        example=(
            'data = Path("model.pkl").read_bytes()\n'
            'Path("model.pkl").write_bytes(data[: len(data) // 2])  # a torn download'
        ),
    ),
)
def find_damage(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.damage:
        yield hit("", damage=checkpoint.damage)


@check(
    Checkpoint,
    Rule(
        code="CK601",
        name="index-missing-shard",
        level=Level.ERROR,
        summary="the index names the shard {key}, which {fault}",
        why="Loaders start with uninitialised weights, or fail half-way.",
        fix="Fetch the shard, or rebuild the index.",
        example=(
            'index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}\n'
            'os.remove("model-00001-of-00002.safetensors")'
        ),
    ),
)
def find_missing_shards(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    yield from _iter_issue_hits(checkpoint, IssueKind.MISSING_SHARD)


@check(
    Checkpoint,
    Rule(
        code="CK602",
        name="index-missing-tensor",
        level=Level.ERROR,
        summary="the index puts `{key}` into {shard}, which does not hold it",
        why="The index is of another save or another quantisation than the shards.",
        fix="Fetch index and shards of one save, or rebuild the index.",
        example=(
            'index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}\n'
            'save_file({"b": torch.ones(1)}, "model-00001-of-00001.safetensors")'
        ),
    ),
)
def find_missing_indexed_tensors(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    yield from _iter_issue_hits(checkpoint, IssueKind.MISSING_TENSOR)


@check(
    Checkpoint,
    Rule(
        code="CK603",
        name="stray-shard",
        level=Level.WARNING,
        summary="{what} `{key}` is beside the index, which does not name it",
        why=(
            "It is not loaded by anybody who follows the index: a left-over, or an index that "
            "lost entries."
        ),
        fix="Remove it, or rebuild the index.",
        example=(
            'index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}\n'
            'save_file({"b": torch.ones(1)}, "model-00002-of-00002.safetensors")'
        ),
    ),
)
def find_stray_shards(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    yield from _iter_issue_hits(checkpoint, IssueKind.UNINDEXED)


@check(
    Checkpoint,
    Rule(
        code="CK314",
        name="unread-part",
        level=Level.NOTE,
        summary="{key} was not looked into",
        detail="{reason}",
        why=(
            "What nobody looked at can hold a pickle that whoever loads or unpacks it runs. "
            "A gate does not pass what it did not read."
        ),
        fix="Save the checkpoint without it, or release it as a file of its own.",
        example=(
            "buffer = io.BytesIO()\ntorch.save(model.state_dict(), buffer)\n"
            'torch.save({"w": torch.ones(2), "teacher": buffer.getvalue()}, path)'
        ),
        gate=Level.ERROR,
    ),
)
def find_unread_parts(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for part in checkpoint.unread:
        yield hit(part.what, reason=part.reason)


@check(
    Checkpoint,
    Rule(
        code="CK315",
        name="opaque-weights",
        level=Level.WARNING,
        summary="{key} cannot be compared",
        detail="{reason}",
        why=(
            "An object of a compiled class is pickled in a form of its own: weights in it are in "
            "no report, two files with other weights look alike, and no migration takes them along."
        ),
        fix="Release the checkpoint with plain tensors, and pack them after loading.",
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.table = torch.classes.my_library.Table()\n\n\n"
            "torch.jit.script(Net()).save(path)"
        ),
        gate=Level.ERROR,
    ),
)
def find_opaque_weights(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for part in checkpoint.opaque:
        yield hit(part.what, reason=part.reason)


@check(
    Checkpoint,
    Rule(
        code="CK317",
        name="index-passed-over",
        level=Level.WARNING,
        summary="from_pretrained loads `{loaded}`, and not the shards of `{key}` beside it",
        why=(
            "transformers takes the whole file where there is one, whatever the index says: with "
            "one of the two left over from an earlier save, it loads other weights than were meant."
        ),
        fix="Remove the one that is not meant.",
        example=(
            'model.save_pretrained("release")  # model.safetensors\n'
            'model.save_pretrained("release", max_shard_size="1GB")  # shards and their index'
        ),
        gate=Level.ERROR,
    ),
)
def find_passed_over_indexes(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.PASSED_OVER:
            yield hit(issue.key, **issue.facts)
