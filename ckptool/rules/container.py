"""Checkpoint -> hits: classes, storages, metadata and shards (CK302-CK312, CK327, CK601-CK604)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ckptool.model import (
    Checkpoint,
    Container,
    IssueKind,
    StateDict,
    StorageInfo,
    TensorInfo,
    natural_sort_key,
)
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


@check(
    Checkpoint,
    Rule(
        code="CK302",
        name="pickled-module",
        level=Level.WARNING,
        summary="a whole {owner} is pickled at {place}, not its state_dict",
        why=(
            "Loading it needs weights_only=False, its class at the same import path, and "
            "attributes that fit today's code. It does hold the plain attributes that a state_dict "
            "would have lost."
        ),
        fix="Save module.state_dict() from now on.",
        example="torch.save(model, path)  # instead of model.state_dict()",
        gate=Level.ERROR,
    ),
)
def find_pickled_modules(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.container is Container.TORCHSCRIPT:  # TorchScript files contain their classes
        return
    for state in checkpoint.states:
        if state.modules:
            yield hit(state.at, owner=state.modules[""].name, place=_format_location(state))


def _format_location(state: StateDict) -> str:
    return f"`{state.at}`" if state.at else "the root"


@check(
    Checkpoint,
    Rule(
        code="CK303",
        name="pickled-class-unavailable",
        level=Level.ERROR,
        summary="the file needs {what}, which cannot be imported here",
        why=(
            "torch.load of a pickled module fails without its class: a moved package, a renamed "
            "module, a script that ran as __main__."
        ),
        fix="{advice} ckptool reads the tensors all the same: inspect and diff need no class.",
        example=(
            "class Net(nn.Module): ...  # in a script that ran as __main__\n"
            "\n"
            "\n"
            "torch.save(Net(), path)"
        ),
    ),
)
def find_unavailable_classes(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    names = {
        pickled_module.name
        for state in checkpoint.states
        for pickled_module in state.modules.values()
    }
    if not names or checkpoint.container is Container.TORCHSCRIPT:
        return
    from ckptool.modules.class_lookup import class_exists

    packages: dict[str, list[str]] = {}
    for qualified_name in sorted(names, key=natural_sort_key):
        module, _, name = qualified_name.rpartition(".")
        if module == "__main__" or class_exists(module, name, (Path.cwd(),)) is False:
            packages.setdefault(module.partition(".")[0], []).append(qualified_name)
    for package, class_names in packages.items():
        yield hit(
            class_names[0],
            what=_describe_classes(class_names),
            advice=_advise_import(package),
            classes=class_names,
        )


def _describe_classes(class_names: list[str]) -> str:
    if len(class_names) == 1:
        return f"the class {class_names[0]}"
    return (
        f"the class {class_names[0]} and {len(class_names) - 1} more of"
        f" {class_names[0].partition('.')[0]}"
    )


def _advise_import(package: str) -> str:
    if package == "__main__":
        return "Define the class in the script that loads, as the script that saved did."
    return f"Run where {package} can be imported, in the version that saved."


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
        tensor.device for state in checkpoint.states for tensor in state.tensors.values()
    )
    for device, count in sorted(
        tensor_counts.items(), key=lambda entry: natural_sort_key(entry[0])
    ):
        if device not in {"cpu", "meta"}:
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
        code="CK327",
        name="index-shadowed",
        level=Level.WARNING,
        summary="libraries load {key}, which is beside {index}, and not the shards",
        why=(
            "transformers and diffusers look for the one file of all weights before they look for "
            "an index, and for safetensors before pickles. What was described here, the shards, is "
            "not what they would load."
        ),
        fix="Remove the file, or the index with its shards.",
        example=(
            'index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}\n'
            'save_file({"a": torch.zeros(1)}, "model.safetensors")  # of an older save'
        ),
        gate=Level.ERROR,
    ),
)
def find_shadowed_index(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    yield from _iter_issue_hits(checkpoint, IssueKind.SHADOWED)


@check(
    Checkpoint,
    Rule(
        code="CK604",
        name="fsdp-flat-or-local",
        level=Level.ERROR,
        summary="`{key}` holds {what}",
        detail="it must be gathered before it can be loaded",
        why=(
            "FSDP's flat parameters and local shards have neither the keys nor the shapes of the "
            "module."
        ),
        fix="Save again with a full state_dict, or gather it with torch.distributed.checkpoint.",
        example=(
            "with FSDP.state_dict_type(model, StateDictType.LOCAL_STATE_DICT):\n"
            "    torch.save(model.state_dict(), path)"
        ),
    ),
)
def find_fsdp_shards(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state in checkpoint.states:
        for key, tensor in state.tensors.items():
            if "_flat_param" in key or key.endswith("flat_param"):
                yield hit(key, what="an FSDP flat parameter")
            elif "ShardedTensor" in tensor.wrapper or _is_rank_part(tensor):
                yield hit(key, what="one rank's shard of a tensor")


def _is_rank_part(tensor: TensorInfo) -> bool:
    """Whether it is a DTensor whose local tensor is not the whole."""
    return tensor.wrapper.endswith(".DTensor") and any(
        component.tensor.shape != tensor.shape for component in tensor.parts
    )
