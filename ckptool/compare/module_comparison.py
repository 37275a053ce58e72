"""State of a checkpoint x module -> ModuleDiff, by keys and then by what its loader does."""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import msgspec

from ckptool.compare.changes import (
    Change,
    Changed,
    Missing,
    Unexpected,
    is_shape_mismatch,
    iter_changes,
)
from ckptool.compare.key_pairing import pair_missing_keys
from ckptool.compare.load_outcome import LoadOutcome, find_load_steps
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parametrization.reparametrization import find_reparametrizations
from ckptool.compare.quantization.difference import find_quantization_difference
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.compare.renames import PrefixRewrite
from ckptool.compare.states import find_best_state, require_state_or_part, score_match
from ckptool.model import Checkpoint, Kind, ModuleInfo, StateDict, TensorInfo

_BATCH_COUNTER: Final = "num_batches_tracked"


def build_module_diff(checkpoint: Checkpoint, module: ModuleInfo, at: str | None) -> ModuleDiff:
    """Compare the state at `at` with the module; with None, the state that matches best."""
    best_match = find_best_state(checkpoint, module)
    state = best_match if at is None else require_state_or_part(checkpoint, at)
    expected = {key: module_tensor.tensor for key, module_tensor in module.saved_tensors.items()}
    mistyped_keys = dict(_find_mistyped_keys(expected, state))
    lazy_keys = {key for key, tensor in expected.items() if tensor.layout == "lazy"}
    reparametrizations = find_reparametrizations(expected, state, module)
    hook_handled_keys = {
        k
        for reparametrization in reparametrizations
        if reparametrization.handled_by_torch_hook
        for k in (*reparametrization.file_keys, *reparametrization.module_keys)
    }
    changes = tuple(
        change
        for change in iter_changes(expected, state.tensors, ("shape", "dtype"))
        if not (isinstance(change, Changed) and change.key in lazy_keys)
        and change.key not in hook_handled_keys
        and change.key not in mistyped_keys
    )
    is_beaten = best_match is not state and (
        score_match(best_match, module) > score_match(state, module)
    )
    diff = ModuleDiff(
        checkpoint,
        state,
        module,
        changes,
        reparametrizations=reparametrizations,
        quantization=find_quantization_difference(checkpoint, state, module),
        better_state=best_match if is_beaten else None,
        mistyped_keys=mistyped_keys,
    )
    return pair_missing_keys(msgspec.structs.replace(diff, **_find_non_tensors(diff)), expected)


def add_nested_keys(diff: ModuleDiff) -> ModuleDiff:
    """Return the diff in which states beside the state's tensors are unexpected, as in torch.

    Where the module has a tensor of that name, they stand in its place.
    """
    nested_keys, saved_tensors = diff.nested_keys, diff.module.saved_tensors
    mistyped = {key: "a container" for key in nested_keys if key in saved_tensors}
    unexpected = [key for key in nested_keys if key not in saved_tensors]
    return msgspec.structs.replace(
        diff,
        changes=tuple(change for change in diff.changes if change.key not in mistyped),
        mistyped_keys={**diff.mistyped_keys, **mistyped},
        unexpected_non_tensors=(*diff.unexpected_non_tensors, *unexpected),
    )


def _find_mistyped_keys(
    expected: Mapping[str, TensorInfo], state: StateDict
) -> Iterator[tuple[str, str]]:
    """Yield (key, what the file has) where `load_state_dict` finds no tensor that it can copy."""
    for key, module_tensor in expected.items():
        tensor = state.tensors.get(key)
        if tensor is None:
            if key in state.non_tensors:
                yield key, _format_in_sentence(state.non_tensors[key])
        elif tensor.kind is Kind.ARRAY:
            yield key, f"a NumPy array, {tensor.dtype} {list(tensor.shape)}"
        elif tensor.layout == "lazy" and module_tensor.layout != "lazy":
            yield key, "an uninitialized parameter or buffer"


def _format_in_sentence(description: str) -> str:
    """Return a description such as "list of 3" as a part of a sentence: "a list of 3 values"."""
    kind, _, count = description.partition(" of ")
    if kind == "bytes":
        return f"a byte string of {count}"
    return (
        f"a {kind} of {count} values" if kind in {"dict", "list", "tuple", "set"} else description
    )


def apply_load_outcome(diff: ModuleDiff, outcome: LoadOutcome) -> ModuleDiff:
    """Return the diff with the facts of the module's own loader in the place of the keys' alone.

    What loads because of the module's code is no longer missing, unexpected or mismatched in shape;
    the steps say what the code did.
    """
    if outcome.is_strict:
        return _apply_strict_load(diff, outcome)
    missing, unexpected = outcome.missing_keys, outcome.unexpected_keys
    changes = tuple(
        change
        for change in diff.changes
        if isinstance(change, Changed)
        or (isinstance(change, Missing) and (missing is None or change.key in missing))
        or (isinstance(change, Unexpected) and (unexpected is None or change.key in unexpected))
    )
    keys = {change.key for change in changes if not isinstance(change, Changed)}
    rename_groups = (_keep_keys(group, changes, diff) for group in diff.rename_groups)
    return msgspec.structs.replace(
        diff,
        load_outcome=outcome,
        changes=changes,
        rewrite=_keep_rewrite(diff, keys),
        reshaped_keys={k: v for k, v in diff.reshaped_keys.items() if k in keys},
        part=diff.part if diff.part and keys & diff.part.key_map.keys() else None,
        rename_groups=tuple(group for group in rename_groups if group.pairs),
        fused_projections=tuple(p for p in diff.fused_projections if p.fused_key in keys),
        tied_missing_keys={k: v for k, v in diff.tied_missing_keys.items() if k in keys},
        equal_values={k: v for k, v in diff.equal_values.items() if k in keys},
    )


def _keep_rewrite(diff: ModuleDiff, keys: Collection[str]) -> PrefixRewrite | None:
    """Return the rewrite if the module's own loading code leaves one of the keys it applies to."""
    is_left = diff.rewrite is not None and not (
        diff.rewrite.key_map.keys() | diff.reshaped_keys.keys()
    ).isdisjoint(keys)
    return diff.rewrite if is_left else None


def _keep_keys(group: RenameGroup, changes: tuple[Change, ...], diff: ModuleDiff) -> RenameGroup:
    """Return the group with the pairs whose keys the module's own loading code leaves as well.

    A counter that BatchNorm sets to 0, as the file has no version metadata, is left, too.
    """
    absent = {change.key for change in changes if isinstance(change, Missing)}
    extra = {change.key for change in changes if isinstance(change, Unexpected)}
    file_keys, module_keys = diff.state.tensors, diff.module.saved_tensors
    pairs = {
        old: new
        for old, new in group.pairs.items()
        if (old in extra or old in module_keys)
        and (new in absent or new in file_keys or new.endswith(_BATCH_COUNTER))
    }
    return group if len(pairs) == len(group.pairs) else msgspec.structs.replace(group, pairs=pairs)


def _apply_strict_load(diff: ModuleDiff, outcome: LoadOutcome) -> ModuleDiff:
    retied_keys = diff.retied_keys
    return msgspec.structs.replace(
        diff,
        load_outcome=outcome,
        load_steps=tuple(find_load_steps(outcome, diff.state, diff.module, retied_keys)),
        changes=tuple(
            change
            for change in diff.changes
            if (isinstance(change, Missing) and change.key in retied_keys)
            or (isinstance(change, Changed) and not is_shape_mismatch(change))
        ),
        missing_non_tensors=(),
        unexpected_non_tensors=(),
        mistyped_keys={},
        rewrite=None,
        reshaped_keys={},
        part=None,
        rename_groups=(),
        fused_projections=(),
        quantization=None,
        reparametrizations=tuple(r for r in diff.reparametrizations if r.handled_by_torch_hook),
        equal_values={},
    )


def _find_non_tensors(diff: ModuleDiff) -> dict[str, tuple[str, ...]]:
    """Return fields of ModuleDiff: the keys without a tensor that only one side has."""
    state, module = diff.state, diff.module
    prefix = f"{state.at}." if state.at else ""
    # Packed parameters, a tuple or an object with tensors, are described as nested states.
    places = {s.at.removeprefix(prefix) for s in diff.checkpoint.states if s.at.startswith(prefix)}
    file_keys = {*state.non_tensors, *state.tensors}
    return {
        "missing_non_tensors": tuple(
            key
            for key in module.non_tensors
            if key not in file_keys
            and not any(place == key or place.startswith(f"{key}.") for place in places)
        ),
        "unexpected_non_tensors": tuple(
            k
            for k in state.non_tensors
            if k not in module.non_tensors and k not in module.saved_tensors
        ),
    }
