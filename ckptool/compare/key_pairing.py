"""Missing and unexpected tensors of a ModuleDiff -> the pairs that explain them."""

from collections.abc import Collection, Mapping

import msgspec
from msgspec import Struct

from ckptool.compare.changes import Missing, Unexpected
from ckptool.compare.fused_projections import find_fused_projections
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parametrization.reparametrization import (
    GAMMA_BETA_NAMES,
    find_gamma_beta_renames,
)
from ckptool.compare.parts import PartMatch, PartSide, find_file_part, find_module_part
from ckptool.compare.rename_search.rename_groups import (
    RenameGroup,
    add_tied_keys,
    build_documented_groups,
    find_list_group,
)
from ckptool.compare.rename_search.search import find_rename_groups
from ckptool.compare.renames import PrefixRewrite, find_prefix_rewrite, find_wrapper_rewrite
from ckptool.formats.safetensors.tie_metadata import parse_declared_ties
from ckptool.model import ModuleInfo, TensorInfo, tied_keys
from ckptool.values import equality
from ckptool.values.fingerprint_many import fingerprint_tensor


class _UnpairedTensors(Struct, frozen=True):
    """Tensors that only one side has, by key."""

    missing: Mapping[str, TensorInfo]
    unexpected: Mapping[str, TensorInfo]

    def without(self, keys: Collection[str]) -> "_UnpairedTensors":
        return _UnpairedTensors(
            _without_keys(self.missing, keys), _without_keys(self.unexpected, keys)
        )


def pair_missing_keys(diff: ModuleDiff, expected: Mapping[str, TensorInfo]) -> ModuleDiff:
    """Pair missing with unexpected tensors: each stage gets what those before do not explain."""
    unpaired = _UnpairedTensors(
        {c.key: c.expected for c in diff.changes if isinstance(c, Missing)},
        {c.key: c.actual for c in diff.changes if isinstance(c, Unexpected)},
    ).without(diff.quantization.explained_keys if diff.quantization else ())
    if not (unpaired.missing or unpaired.unexpected):
        return msgspec.structs.replace(diff, diverged_ties=_find_diverged_ties(diff))
    module = diff.module
    classes = {prefix: module_class.name for prefix, module_class in module.modules.items()}
    diff = _add_tied_keys_of_rewrite(_find_rewrite(diff, unpaired, expected), unpaired.missing)

    left = unpaired.without(diff.explained_keys)
    old_names = find_gamma_beta_renames(left.missing, left.unexpected, classes)
    documented_groups = tuple(build_documented_groups(old_names, GAMMA_BETA_NAMES))
    diff = msgspec.structs.replace(diff, rename_groups=documented_groups)

    left = unpaired.without(diff.explained_keys)
    diff = msgspec.structs.replace(
        diff,
        fused_projections=find_fused_projections(
            [*left.missing.values()], [*left.unexpected.values()], classes
        ),
    )

    rename_groups = _find_rename_groups(diff, unpaired.without(diff.explained_keys), expected)
    groups = add_tied_keys(
        (*documented_groups, *rename_groups), unpaired.missing, module.saved_tensors
    )
    diff = msgspec.structs.replace(diff, rename_groups=tuple(groups))

    left = unpaired.without(diff.explained_keys)
    diff = msgspec.structs.replace(diff, reshaped_keys=_find_reshaped_keys(diff.rewrite, left))
    if diff.rewrite is not None and not (diff.rewrite.key_map or diff.reshaped_keys):
        diff = msgspec.structs.replace(diff, rewrite=None)  # other pairs explain all of its keys
    left = left.without(diff.explained_keys)
    tied_keys_by_missing = _find_tied_missing_keys(module, diff.state.tensors)
    return msgspec.structs.replace(
        diff,
        diverged_ties=_find_diverged_ties(diff),
        tied_missing_keys={k: v for k, v in tied_keys_by_missing.items() if k in left.missing},
        equal_values=_compare_unsaved_values([*unpaired.unexpected.values()], module),
    )


def _find_rewrite(
    diff: ModuleDiff, unpaired: _UnpairedTensors, expected: Mapping[str, TensorInfo]
) -> ModuleDiff:
    """Return the diff with its part and its rewrite of prefixes."""
    missing, unexpected, file_tensors = unpaired.missing, unpaired.unexpected, diff.state.tensors
    part = find_file_part(missing, unexpected, diff.module, len(file_tensors)) or find_module_part(
        missing, unexpected, file_tensors, len(expected)
    )
    rewrite = (
        _rewrite_part(part)
        if part
        else find_prefix_rewrite(
            [*missing.values()], [*unexpected.values()], expected, file_tensors
        )
        or find_wrapper_rewrite(missing, unexpected)
    )
    return msgspec.structs.replace(diff, part=part, rewrite=rewrite)


def _find_reshaped_keys(rewrite: PrefixRewrite | None, left: _UnpairedTensors) -> dict[str, str]:
    """Return the keys that the rewrite gives the name, and not the shape, of a missing tensor."""
    if rewrite is None:
        return {}
    pairs = {key: rewrite.rewrite_key(key) for key in left.unexpected}
    return {key: new_key for key, new_key in pairs.items() if new_key in left.missing}


def _find_rename_groups(
    diff: ModuleDiff, left: _UnpairedTensors, expected: Mapping[str, TensorInfo]
) -> tuple[RenameGroup, ...]:
    """Return the renames among the tensors that nothing else explains."""
    list_group = find_list_group(diff.state, diff.module.saved_tensors)
    if list_group is not None:
        return (list_group,)
    # A tensor that the module has and does not save is compared by its value.
    unsaved_keys = {*diff.module.tensors, *diff.module.none_buffers}
    return find_rename_groups(
        left.missing, _without_keys(left.unexpected, unsaved_keys), expected, diff.state.tensors
    )


def _rewrite_part(part: PartMatch) -> PrefixRewrite | None:
    """Return the rewrite of the file's keys to the module's; None if several places fit."""
    if not part.is_unique:
        return None
    added_prefix = f"{part.prefix}." if part.side is PartSide.FILE else ""
    return PrefixRewrite(part.removed_segments, added_prefix, part.key_map)


def _without_keys(
    tensors: Mapping[str, TensorInfo], keys: Collection[str]
) -> dict[str, TensorInfo]:
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def _find_diverged_ties(diff: ModuleDiff) -> tuple[tuple[str, str], ...]:
    """Return pairs of keys declared tied that are separate tensors with different values."""
    file_tensors = diff.state.tensors
    groups = tied_keys(module_tensor.tensor for module_tensor in diff.module.saved_tensors.values())
    present_groups = ([key for key in group if key in file_tensors] for group in groups)
    tied_pairs = [(group[0], second) for group in present_groups for second in group[1:]]
    declared_ties = parse_declared_ties(diff.checkpoint.metadata, file_tensors)
    tied_pairs += [(kept_key, name) for name, kept_key in declared_ties.items()]
    separate_pairs = [
        (first, second)
        for first, second in dict.fromkeys(tied_pairs)
        if first in file_tensors
        and second in file_tensors
        and not tied_keys((file_tensors[first], file_tensors[second]))
    ]
    results = equality.equal_many(
        [(file_tensors[first], file_tensors[second]) for first, second in separate_pairs]
    )
    return tuple(
        pair for pair, is_equal in zip(separate_pairs, results, strict=True) if is_equal is False
    )


def _add_tied_keys_of_rewrite(diff: ModuleDiff, missing: Collection[str]) -> ModuleDiff:
    """Return the diff whose rewrite has the missing keys that are tied to keys it brings."""
    if diff.rewrite is None:
        return diff
    renamed = {new: diff.state.tensors[old] for old, new in diff.rewrite.key_map.items()}
    tied_keys_by_missing = _find_tied_missing_keys(diff.module, renamed)
    tied = tuple(key for key in tied_keys_by_missing if key in missing)
    return msgspec.structs.replace(
        diff, rewrite=msgspec.structs.replace(diff.rewrite, tied_keys=tied)
    )


def _find_tied_missing_keys(
    module: ModuleInfo, file_tensors: Mapping[str, TensorInfo]
) -> dict[str, str]:
    """Return saved key missing in the file -> key in the file that is tied to it."""
    missing_to_present: dict[str, str] = {}
    for group in tied_keys(module_tensor.tensor for module_tensor in module.saved_tensors.values()):
        present_keys = [
            key
            for key in group
            if key in file_tensors and file_tensors[key].shape == module.tensors[key].tensor.shape
        ]
        if present_keys:
            missing_to_present |= {key: present_keys[0] for key in group if key not in file_tensors}
    return missing_to_present


def _compare_unsaved_values(unexpected: list[TensorInfo], module: ModuleInfo) -> dict[str, bool]:
    """Return unexpected key -> whether its fingerprint is that of the module's unsaved tensor."""
    equal_values: dict[str, bool] = {}
    for tensor in unexpected:
        module_tensor = module.tensors.get(tensor.key)
        if module_tensor is not None and module_tensor.fingerprint:
            file_fingerprint = fingerprint_tensor(tensor)
            if file_fingerprint is not None:
                equal_values[tensor.key] = file_fingerprint == module_tensor.fingerprint
    return equal_values
