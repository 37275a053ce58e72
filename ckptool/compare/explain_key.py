"""ModuleDiff or CheckpointDiff x key -> facts about the key, as (label, value) pairs."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.errors import UsageError
from ckptool.model import Constancy, ModuleTensor, TensorInfo

_MAX_COMPARED_KEYS: Final = 10_000
_MAX_COMPARED_CHARS: Final = 300
"""Keys among which one that was mistyped is looked for: comparing takes their lengths squared."""

_CHANGED_ORIGINS: Final = {
    Constancy.RANDOM: "is random on every construction",
    Constancy.MUTATED: "was changed after the module was built",
}

FactPairs = Iterator[tuple[str, str]]


def explain_module_key(diff: ModuleDiff, key: str) -> tuple[tuple[str, str], ...]:
    """Return the facts about `key` in the file and in the module.

    Raises:
        UsageError: neither has the key.
    """
    module_tensor = diff.module.tensors.get(key)
    tensor = diff.state.tensors.get(key) or diff.state.unsaved_tensors.get(key)
    if module_tensor is None and tensor is None:
        _reject_unknown_key(key, (*diff.module.tensors, *diff.state.tensors))
    return (
        *_describe_tensor("in the file", tensor),
        *_describe_module_tensor(module_tensor),
        *_describe_relations(diff, key),
    )


def explain_checkpoint_key(diff: CheckpointDiff, key: str) -> tuple[tuple[str, str], ...]:
    """Return the facts about `key` in both files.

    Raises:
        UsageError: neither has the key.
    """
    old, new = diff.old_tensors.get(key), diff.new_tensors.get(key)
    if old is None and new is None:
        _reject_unknown_key(key, (*diff.old_tensors, *diff.new_tensors))
    return (
        *_describe_tensor("in the old file", old),
        *_describe_tensor("in the new file", new),
        ("values", _value_status(diff, key)),
        *_describe_value_difference(diff, key),
    )


def describe_origin(module_tensor: ModuleTensor) -> str:
    """Return why the constructor does not bring a buffer's value back; follows "a buffer that"."""
    if module_tensor.is_statistic and module_tensor.owner.startswith("torch."):
        return "training changes"
    if module_tensor.written_at:
        return f"code outside the constructor modifies ({module_tensor.written_at})"
    if module_tensor.is_statistic:
        return "training changes"
    if module_tensor.constancy in _CHANGED_ORIGINS:
        return _CHANGED_ORIGINS[module_tensor.constancy]
    if module_tensor.constancy is Constancy.CONSTANT and module_tensor.is_blank:
        return (
            f"the constructor fills with {module_tensor.blank_fill}, to be set by training, "
            "calibration or a loader"
        )
    return "is not known to be the same on every construction"


def _reject_unknown_key(key: str, known_keys: Iterable[str]) -> None:
    comparable_keys = [k for k in known_keys if len(k) <= _MAX_COMPARED_CHARS]
    close = get_close_matches(key, comparable_keys[:_MAX_COMPARED_KEYS], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"--explain {key}: neither side has this key{hint}")


def _describe_tensor(side: str, tensor: TensorInfo | None) -> FactPairs:
    if tensor is None:
        yield side, "not there"
        return
    yield side, f"{tensor.dtype} {list(tensor.shape)}, {tensor.nbytes} bytes, {tensor.layout}"
    if tensor.storage is not None:
        storage = tensor.storage
        yield (
            f"{side}: storage",
            f"{storage.key!r}, {storage.nbytes} bytes, saved on {storage.device}",
        )
        if tensor.span is not None:
            span = tensor.span
            yield f"{side}: bytes", f"{span.offset} to {span.offset + span.nbytes} of {span.path}"


def _describe_module_tensor(module_tensor: ModuleTensor | None) -> FactPairs:
    if module_tensor is None:
        yield "in the module", "not there"
        return
    yield (
        "in the module",
        (
            f"{module_tensor.kind} of {module_tensor.owner}, {module_tensor.tensor.dtype}"
            f" {list(module_tensor.tensor.shape)}"
        ),
    )
    yield "saved by state_dict()", "yes" if module_tensor.is_saved else "no"
    yield "value on every construction", str(module_tensor.constancy)
    if module_tensor.blank_fill:
        source = ", computed from its arguments" if module_tensor.is_computed_from_arguments else ""
        yield "constructor fills it with", f"{module_tensor.blank_fill}{source}"
    yield "follows .to(device)", "yes" if module_tensor.follows_to else "no"
    yield "follows .half()", "yes" if module_tensor.follows_dtype else "no"
    for name, place in (
        ("assigned", module_tensor.assigned_at),
        ("used in forward", module_tensor.used_at),
        ("modified outside the constructor", module_tensor.written_at),
        ("shares memory with", module_tensor.alias_of),
    ):
        if place:
            yield name, place


def _describe_relations(diff: ModuleDiff, key: str) -> FactPairs:
    rewritten_keys = diff.rewrite.key_map if diff.rewrite else {}
    for old, new in rewritten_keys.items():
        if key in (old, new):
            yield (
                "after rewriting wrapper segments",
                f"{old} in the file is {new} in the module",
            )
    for group in diff.rename_groups:
        yield from _describe_rename(group, key)
    if key in diff.equal_values:
        is_equal = diff.equal_values[key]
        yield "value compared with the module's", "equal" if is_equal else "different"


def _describe_rename(group: RenameGroup, key: str) -> FactPairs:
    """Yield what a group says of `key`, which may be on both sides (a layer that moved)."""
    old_keys = [key] if key in group.pairs else []
    old_keys += [old for old, new in group.pairs.items() if new == key]
    for old in old_keys:
        label = "probably renamed" if group.is_unambiguous else "may be renamed"
        label = "renamed, as documented" if group.is_documented else label
        yield label, f"{old} in the file is {group.pairs[old]} in the module"
        if old in group.transposed_keys:
            yield "dimensions", "swapped"
    if old_keys and len(group.pairs) > 1:
        yield "as part of", f"{group.old_pattern} -> {group.new_pattern}"
    if old_keys:
        yield "evidence", group.evidence


def _value_status(diff: CheckpointDiff, key: str) -> str:
    if diff.differing_keys is None:
        return "not compared"
    if key in diff.differing_keys:
        return "different"
    if key in diff.uncompared_keys or key not in diff.old_tensors or key not in diff.new_tensors:
        return "not compared"
    return "equal"


def _describe_value_difference(diff: CheckpointDiff, key: str) -> FactPairs:
    difference = diff.value_differences.get(key)
    if difference is None:
        return
    yield "elements changed", f"{difference.changed} of {difference.elements}"
    for name, value in (
        ("largest difference", difference.max_abs),
        ("mean difference", difference.mean_abs),
        ("relative change (L2)", difference.relative_l2),
        ("cosine", difference.cosine),
    ):
        yield name, "none" if value is None else f"{value:g}"
    yield (
        "not finite",
        f"{difference.old_nonfinite} in the old, {difference.new_nonfinite} in the new",
    )
    if diff.old_tensors[key].dtype != diff.new_tensors[key].dtype:
        yield "only rounding", "yes" if difference.rounding else "no"
    names = ("below 1e-12", *(f"1e{n} to 1e{n + 1}" for n in range(-12, 3)), "1e3 and above")
    for name, count in zip(names, difference.histogram, strict=True):
        if count:
            yield f"differences {name}", str(count)
