"""Checkpoint -> hits: archives, storages, metadata and shards (CK306-CK317, CK322, CK601-CK603)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Final

from ckptool.model import (
    Checkpoint,
    Container,
    IssueKind,
    StorageInfo,
    TensorInfo,
    natural_sort_key,
)
from ckptool.phrases import cut_middle
from ckptool.rules.fixes.commands import advise_conversion, format_convert_command
from ckptool.rules.fixes.folder_code import advise_download, advise_index
from ckptool.rules.registry import CONVERT, Level, Rule, RuleHit, check, hit


@check(
    Checkpoint,
    Rule(
        code="CK307",
        name="device-tag",
        level=Level.WARNING,
        summary="tensors were saved on {key} ({count})",
        why=(
            "torch.load restores them to that device: it fails if there is none, or fills the "
            "memory of the first GPU."
        ),
        fix='torch.load(path, map_location="cpu"), or save after module.cpu()',
        example="torch.save(model.cuda().state_dict(), path)",
    ),
)
def find_device_tags(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    tensor_counts = Counter(
        device
        for state in checkpoint.states
        for tensor in state.tensors.values()
        if (device := tensor.device) != "cpu" and not tensor.is_on_meta
    )
    for device, count in sorted(
        tensor_counts.items(), key=lambda entry: natural_sort_key(entry[0])
    ):
        yield hit(device, count=count)


_MIN_WASTE_NBYTES: Final = 4096
"""Bytes: waste of less than a memory page is not reported."""


@check(
    Checkpoint,
    Rule(
        code="CK308",
        name="storage-bloat",
        level=Level.WARNING,
        summary="`{key}` needs {needed} bytes, and its storage takes {stored} bytes in the file",
        why=(
            "torch.save writes the whole storage of a view: a slice of a large tensor takes as "
            "much space as the large tensor."
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
        summary="the safetensors header has no `format` in its __metadata__",
        why=(
            "transformers and accelerate read metadata()['format'] and fail with an "
            "AttributeError or refuse the file."
        ),
        fix=(
            "Write it again: {command}; or in code: "
            'save_file(tensors, path, metadata={{"format": "pt"}})'
        ),
        general_command=CONVERT,
        example='save_file(model.state_dict(), path)  # without metadata={"format": "pt"}',
    ),
)
def find_missing_format_metadata(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.container is Container.SAFETENSORS and "format" not in checkpoint.metadata:
        yield hit("__metadata__", command=format_convert_command(checkpoint))


@check(
    Checkpoint,
    Rule(
        code="CK312",
        name="noncontiguous",
        level=Level.NOTE,
        summary="`{key}`, {shape} with stride {stride}, is not contiguous",
        why=(
            "safetensors refuses to save it: its bytes in the file are not in the order of its "
            "elements."
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
            "A .pth file is a zip archive with all records in one folder. If it was unpacked and "
            "repacked by hand, by a browser or by an archiver, that folder may be missing, or "
            "there may be other files next to it. pickle.dump and joblib.dump do not write such "
            "an archive at all."
        ),
        fix="To write a file that torch.load opens: {command}",
        general_command=CONVERT,
        example=(
            'with zipfile.ZipFile(path, "w") as archive:\n'
            '    for file in unpacked.rglob("*"):\n'
            "        archive.write(file, file.relative_to(unpacked))  # without the folder"
        ),
    ),
)
def find_archive_refusal(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.load_refusal:
        yield hit(
            "",
            refusal=checkpoint.load_refusal,
            command=format_convert_command(checkpoint, suffix=".pth"),
        )


@check(
    Checkpoint,
    Rule(
        code="CK322",
        name="compressed-archive",
        level=Level.ERROR,
        summary="tensors are compressed in the archive ({count})",
        detail="torch.load(mmap=True) reads the compressed bytes as values, without an error",
        why=(
            "torch.save stores its records uncompressed, and a memory map reads them directly. "
            "An archive that was repacked with compression loads correctly without mmap, and as "
            "noise with it."
        ),
        fix="To write it without compression: {command}",
        general_command=CONVERT,
        example=(
            'with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:\n'
            '    for file in unpacked.rglob("*"):\n'
            "        archive.write(file, file.relative_to(unpacked.parent))"
        ),
    ),
)
def find_compressed_archive(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    command = format_convert_command(checkpoint, suffix=".pth")
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.COMPRESSED:
            yield hit(issue.key, command=command, **issue.facts)


@check(
    Checkpoint,
    Rule(
        code="CK306",
        name="not-a-checkpoint",
        level=Level.ERROR,
        summary="reading stopped",
        detail="{damage}",
        why=("Nothing after the damaged part was read. What was found before it is reported."),
        fix="Do not load the file. {remedy}",
        general_advice="Do not load the file; download or copy it again.",
        example=(
            'data = Path("model.pkl").read_bytes()\n'
            'Path("model.pkl").write_bytes(data[: len(data) // 2])  # a torn download'
        ),
    ),
)
def find_damage(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.damage:
        name = PurePath(str(checkpoint.path)).name
        remedy = advise_download(checkpoint, "it", name, "--force-download")
        yield hit("", damage=checkpoint.damage, remedy=remedy)


@check(
    Checkpoint,
    Rule(
        code="CK601",
        name="index-missing-shard",
        level=Level.ERROR,
        summary="the index refers to the shard {key}, which {fault}",
        why="Loaders leave the weights uninitialised, or raise.",
        fix="{remedy}",
        general_advice=(
            "Download the missing shard, for example with hf download REPOSITORY SHARD --local-dir "
            "FOLDER."
        ),
        example=(
            'index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}\n'
            'os.remove("model-00001-of-00002.safetensors")'
        ),
    ),
)
def find_missing_shards(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.MISSING_SHARD:
            remedy = advise_download(checkpoint, "the missing shard", issue.key)
            yield hit(issue.key, remedy=remedy, **issue.facts)


@check(
    Checkpoint,
    Rule(
        code="CK602",
        name="index-missing-tensor",
        level=Level.ERROR,
        summary="the index says that `{key}` is in {shard}, which does not contain it{effect}",
        why="The index belongs to a different save, or a different quantisation, than the shards.",
        fix="{remedy}",
        general_advice=(
            "Download the index and the shards of the same save, or write the index again from the "
            "shards that are there."
        ),
        example=(
            'index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}\n'
            'save_file({"b": torch.ones(1)}, "model-00001-of-00001.safetensors")'
        ),
    ),
)
def find_missing_indexed_tensors(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    kinds = {IssueKind.MISSING_TENSOR, IssueKind.MISPLACED_TENSOR}
    issues = [issue for issue in checkpoint.faults if issue.kind in kinds]
    remedy = advise_index(checkpoint) if issues else ""
    for issue in issues:
        loader = issue.facts.get("loader", "")
        yield hit(
            issue.key,
            Level.WARNING if loader else Level.ERROR,
            remedy=remedy,
            shard=issue.facts["shard"],
            effect=_describe_actual_shard(issue.facts.get("found", ""), loader),
        )


def _describe_actual_shard(shard: str, loader: str) -> str:
    """Return what becomes of a tensor that is in `shard`, or in none if that is ""."""
    if not shard:
        return "; no shard contains it"
    if not loader:
        return (
            f"; it is in {cut_middle(shard)}: load_checkpoint_in_model() of accelerate finds it"
            " there, since it reads whole shards; code that opens the shard of one key does not"
        )
    return (
        f"; it is in {cut_middle(shard)}, from which {loader} loads it, since it reads whole shards"
        "; code that opens the shard of one key does not find it"
    )


@check(
    Checkpoint,
    Rule(
        code="CK603",
        name="stray-shard",
        level=Level.WARNING,
        summary="{what} `{key}` is in the same folder as the index, which does not list it",
        why=(
            "Loaders that follow the index ignore it: either the file is a leftover, or the "
            "index lost entries."
        ),
        fix="To write what the index lists, without it: {command}. If it belongs to the release, "
        "download the index again.",
        general_command=CONVERT,
        example=(
            'index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}\n'
            'save_file({"b": torch.ones(1)}, "model-00002-of-00002.safetensors")'
        ),
    ),
)
def find_stray_shards(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    command = format_convert_command(checkpoint)
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.UNINDEXED:
            yield hit(issue.key, command=command, **issue.facts)


@check(
    Checkpoint,
    Rule(
        code="CK314",
        name="unread-part",
        level=Level.NOTE,
        summary="not examined: {key}",
        detail="{reason}",
        why=(
            "Data that was not examined can contain a pickle, which runs code when it is loaded. "
            "A gate does not pass what it did not read."
        ),
        fix="Save the checkpoint without it, or release it as a separate file.{conversion}",
        example=(
            "buffer = io.BytesIO()\ntorch.save(model.state_dict(), buffer)\n"
            'torch.save({"w": torch.ones(2), "teacher": buffer.getvalue()}, path)'
        ),
        gate=Level.ERROR,
    ),
)
def find_unread_parts(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for part in checkpoint.unread:
        conversion = advise_conversion(checkpoint, "write the tensors alone", "--weights-only")
        yield hit(part.what, reason=part.reason, conversion=conversion)


@check(
    Checkpoint,
    Rule(
        code="CK315",
        name="opaque-weights",
        level=Level.WARNING,
        summary="{key} cannot be compared",
        detail="{reason}",
        why=(
            "An object of a compiled class is pickled in its own format: weights in it do not "
            "appear in any report, two files with different weights look the same, and "
            "migrations do not copy them. Only the library of the class can unpack it, so that "
            "no command of ckptool does."
        ),
        fix=(
            "Release the checkpoint with plain tensors, and pack them after loading. No ckptool "
            "command can do this: only the library of the class can unpack the object."
        ),
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
        name="weights-passed-over",
        level=Level.WARNING,
        summary="from_pretrained loads {loaded}, not {passed_over}",
        why=(
            "transformers loads the single file if there is one, even if there is an index, and of "
            "a tensor in two shards the last: if one of the two is left over from an earlier save, "
            "the wrong weights are loaded."
        ),
        fix="If the loaded weights are the right ones, write them alone: {command}. If not, "
        "remove them from the folder.",
        general_command=CONVERT,
        example=(
            'model.save_pretrained("release")  # model.safetensors\n'
            'model.save_pretrained("release", max_shard_size="1GB")  # shards and their index'
        ),
        gate=Level.ERROR,
    ),
)
def find_passed_over_indexes(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    command = format_convert_command(checkpoint)
    for issue in checkpoint.faults:
        if issue.kind is IssueKind.PASSED_OVER:
            yield hit(issue.key, command=command, **issue.facts)
