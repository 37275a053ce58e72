"""Checkpoint x ModuleInfo -> ModuleDiff: how a module would load a state_dict."""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from ckptool.compare.changes import (
    Change,
    Changed,
    Missing,
    Unexpected,
    is_scalar_quirk,
    iter_changes,
)
from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.fused_projections import FusedProjection, find_fused_projections
from ckptool.compare.left_out_ties import SINGLE_NAME_CONTAINERS
from ckptool.compare.load_outcome import LoadOutcome, LoadStep, LoadStepKind, find_load_steps
from ckptool.compare.parametrization.reparametrization import (
    GAMMA_BETA_NAMES,
    Reparametrization,
    find_gamma_beta_renames,
    find_reparametrizations,
)
from ckptool.compare.parts import PartMatch, PartSide, find_file_part, find_module_part
from ckptool.compare.quantization.difference import (
    QuantizationDifference,
    find_quantization_difference,
)
from ckptool.compare.rename_search.rename_groups import (
    RenameGroup,
    add_tied_keys,
    build_documented_groups,
    find_list_group,
    find_rename_groups,
)
from ckptool.compare.renames import PrefixRewrite, find_prefix_rewrite, find_wrapper_rewrite
from ckptool.compare.states import find_best_state, require_state_or_part, score_match
from ckptool.formats.safetensors.tie_metadata import parse_declared_ties
from ckptool.model import (
    Checkpoint,
    Kind,
    ModuleInfo,
    Skipped,
    StateDict,
    TensorInfo,
    natural_sort_key,
    tied_keys,
)
from ckptool.phrases import join_limited
from ckptool.values import equality
from ckptool.values.fingerprint_many import fingerprint_tensor
from ckptool.values.statistics import CastEffect


class ModuleDiff(Struct, frozen=True):
    """Comparison of a state in a checkpoint with the state_dict that a module expects."""

    checkpoint: Checkpoint
    state: StateDict
    module: ModuleInfo
    changes: tuple[Change, ...]
    """In the order of the module's keys, then of the file's."""
    missing_non_tensors: tuple[str, ...] = ()
    """Keys without a tensor (extra state) that the module saves and the file does not have."""
    unexpected_non_tensors: tuple[str, ...] = ()
    mistyped_keys: Mapping[str, str] = {}
    """Key of a tensor of the module -> what the file has there that torch does not load as one."""
    rewrite: PrefixRewrite | None = None
    reshaped_keys: Mapping[str, str] = {}
    """Key in the file -> key in the module that `rewrite` makes of it, if the shapes differ."""
    part: PartMatch | None = None
    """Where the file is the state of one sub-module, or the module one part of the file."""
    rename_groups: tuple[RenameGroup, ...] = ()
    """Keys of the file that are probably keys of the module; a key that is in both, with another
    shape, may be part of a group (a layer that moved by one place)."""
    equal_values: Mapping[str, bool] = {}
    """Unexpected key that is unsaved state of the module -> whether the values are equal; only
    keys whose values could be compared."""
    reparametrizations: tuple[Reparametrization, ...] = ()
    """Parameters in different parametrization styles; those with `handled_by_torch_hook` are not
    in `changes`."""
    fused_projections: tuple[FusedProjection, ...] = ()
    """Query, key and value projections: one tensor on one side, three on the other."""
    quantization: QuantizationDifference | None = None
    """Weights that one side has quantised and the other not so; None if there are none."""
    tied_missing_keys: Mapping[str, str] = {}
    """Missing key -> key of the file that is tied to it in the module."""
    retie_refusal: str = ""
    """Why `safetensors.torch.load_model` does not load the file, "" if it does or was not asked."""
    diverged_ties: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied by the module or by the file's metadata, with different values."""
    better_state: StateDict | None = None
    """Another state of the file that matches the module better than `state`; None if none does."""
    cast_effects: Mapping[str, CastEffect] = {}
    """Key with another dtype -> effect of the cast on its values; empty if values were not read."""
    constant_fingerprints: Mapping[str, tuple[str, ...]] = {}
    """Key of a buffer that every construction makes the same -> its fingerprint in the file, then
    those in the half-precision dtypes that hold it exactly; empty if values were not read."""
    load_outcome: LoadOutcome | None = None
    """Result of asking the module's own loading code; None if it has none, or was not asked."""
    load_steps: tuple[LoadStep, ...] = ()
    """What that code does in addition to copying tensors by name, if the load succeeds."""
    loading_info: LoadingInfo | None = None
    """What the framework's loader does, where the module is one of a framework's; else None."""
    is_planned: bool = False
    """Whether no file holds the state yet: it is the result of a plan."""
    unchecked_load: Skipped | None = None
    """What could not be tried of the load, so that keys and shapes decide; None if all was."""

    @property
    def missing_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Missing))
        return (*tensors, *self.missing_non_tensors)

    @property
    def absent_keys(self) -> tuple[str, ...]:
        """Keys that the file does not have: missing, or added by the module's own loading code."""
        added = tuple(s.key for s in self.load_steps if s.kind is LoadStepKind.ADDED)
        return (*self.missing_keys, *added)

    @property
    def unexpected_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Unexpected))
        return (*tensors, *self.unexpected_non_tensors)

    @property
    def explained_keys(self) -> frozenset[str]:
        """Missing, unexpected and mismatched keys that another field of the diff explains."""
        keys = {key for group in self.rename_groups for key in group.keys}
        keys |= {*self.tied_missing_keys}
        if self.quantization:
            keys |= self.quantization.explained_keys
        if self.part:
            keys |= self.part.explained_keys
        if self.rewrite:
            keys |= self.rewrite.explained_keys
        keys |= {*self.reshaped_keys, *self.reshaped_keys.values()}
        keys |= {*self.average_counters}
        keys |= {
            k
            for reparametrization in self.reparametrizations
            for k in (*reparametrization.file_keys, *reparametrization.module_keys)
        }
        return frozenset(
            keys
            | {
                k
                for projection in self.fused_projections
                for k in (projection.fused_key, *projection.piece_keys)
            }
        )

    @property
    def average_counters(self) -> tuple[str, ...]:
        """The key `n_averaged` of torch.optim.swa_utils.AveragedModel, whose prefix is taken out.

        It counts the models that were averaged, and is no part of the model itself; () without it.
        """
        if self.rewrite is None or not {"module", "module."} & {*self.rewrite.removed_segments}:
            return ()
        tensor = self.state.tensors.get(_AVERAGE_COUNTER)
        is_counter = tensor is not None and (tensor.dtype, tensor.numel) == ("int64", 1)
        return (
            (_AVERAGE_COUNTER,) if is_counter and _AVERAGE_COUNTER in self.unexpected_keys else ()
        )

    @property
    def vacated_keys(self) -> tuple[str, ...]:
        """Keys whose tensor in the file is renamed to another key, with none in its place."""
        old_keys = {key for group in self.rename_groups for key in group.pairs}
        new_keys = {key for group in self.rename_groups for key in group.pairs.values()}
        return tuple(k for k in self.module.saved_tensors if k in old_keys and k not in new_keys)

    @property
    def displaced_keys(self) -> tuple[str, ...]:
        """Keys of the file to which another of its tensors is renamed, and that are not renamed."""
        old_keys = {key for group in self.rename_groups for key in group.pairs}
        new_keys = {key for group in self.rename_groups for key in group.pairs.values()}
        return tuple(k for k in self.state.tensors if k in new_keys and k not in old_keys)

    @property
    def shape_mismatches(self) -> tuple[Changed, ...]:
        """Changes that load_state_dict reports as "size mismatch", with strict=False too."""
        return tuple(c for c in self.changes if isinstance(c, Changed) and _is_shape_mismatch(c))

    @property
    def packed_keys(self) -> tuple[str, ...]:
        """Keys of the module without a tensor that are tuples with tensors in the file."""
        known_keys = {*self.missing_non_tensors, *self.state.non_tensors, *self.state.tensors}
        return tuple(key for key in self.module.non_tensors if key not in known_keys)

    @property
    def nested_keys(self) -> tuple[str, ...]:
        """Keys beside the state's tensors whose values are containers: of tensors, or of data."""
        own_keys = {*self.packed_keys, *self.module.non_tensors, *self.state.tensors}
        return tuple(key for key in self.state.container_keys if key not in own_keys)

    @property
    def matched_keys(self) -> tuple[str, ...]:
        unmatched_keys = {c.key for c in self.changes if isinstance(c, Missing)}
        unmatched_keys |= {c.key for c in self.shape_mismatches}
        unmatched_keys |= self.mistyped_keys.keys()
        unmatched_keys |= {s.key for s in self.load_steps if s.kind is LoadStepKind.LOST}
        return tuple(key for key in self.module.saved_tensors if key not in unmatched_keys)

    @property
    def coverage(self) -> float:
        """Fraction (0.0 to 1.0) of the parameters' elements that load; 1.0 without parameters."""
        matched_keys = self.matched_keys
        if len(matched_keys) == len(self.module.saved_tensors):
            return 1.0
        parameters = [
            module_tensor
            for module_tensor in self.module.saved_tensors.values()
            if module_tensor.kind is Kind.PARAMETER
        ]
        total_numel = sum(module_tensor.tensor.numel for module_tensor in parameters)
        loadable_keys = {*matched_keys, *self.tied_missing_keys}
        loaded_numel = sum(
            module_tensor.tensor.numel
            for module_tensor in parameters
            if module_tensor.key in loadable_keys
        )
        return loaded_numel / total_numel if total_numel else 1.0

    @property
    def loads_whole(self) -> bool:
        """Whether the module's own loading code was asked, and loads all of it strictly."""
        is_lost = any(step.kind is LoadStepKind.LOST for step in self.load_steps)
        return self.load_outcome is not None and self.is_strict and not is_lost

    @property
    def is_refused(self) -> bool:
        """Whether keys and shapes match, and torch or the module's own code raises all the same."""
        has_differences = self.missing_keys or self.unexpected_keys or self.shape_mismatches
        return not (self.is_strict or has_differences or self.mistyped_keys)

    @property
    def retied_keys(self) -> Mapping[str, str]:
        """Missing key -> tied key of the file, which the safetensors loader ties again.

        Empty for containers that store tied tensors under every name, and where it does not load.
        """
        is_retied = self.checkpoint.container in SINGLE_NAME_CONTAINERS and not self.retie_refusal
        return self.tied_missing_keys if is_retied else {}

    @property
    def is_strict(self) -> bool:
        """Whether `load_state_dict(strict=True)` succeeds, after `retied_keys` are tied again.

        Of a framework's module, whether its loader finds a counterpart for every tensor.
        """
        if self.loading_info is not None:
            return self.loading_info.is_whole
        if self.load_outcome is not None:
            return self.load_outcome.is_strict
        missing = [key for key in self.missing_keys if key not in self.retied_keys]
        has_differences = missing or self.unexpected_keys or self.shape_mismatches
        return not (has_differences or self.mistyped_keys)


_AVERAGE_COUNTER: Final = "n_averaged"
_BATCH_COUNTER: Final = "num_batches_tracked"


def _is_shape_mismatch(change: Changed) -> bool:
    return "shape" in change.fields and not is_scalar_quirk(change)


def strict_load_obstacles(diff: ModuleDiff) -> str:
    """Return a text with the keys that prevent strict loading; "" if it succeeds."""
    if diff.load_outcome is not None and diff.is_strict:
        return ""
    counts = (
        ("missing", tuple(key for key in diff.missing_keys if key not in diff.retied_keys)),
        ("unexpected", diff.unexpected_keys),
        ("shape mismatch", tuple(change.key for change in diff.shape_mismatches)),
        ("without a tensor", tuple(diff.mistyped_keys)),
    )
    text = "; ".join(f"{len(keys)} {label} ({_join_few(keys)})" for label, keys in counts if keys)
    return text or (diff.load_outcome.error if diff.load_outcome is not None else "")


def _join_few(keys: tuple[str, ...]) -> str:
    return join_limited(sorted(keys, key=natural_sort_key), 3, more=" ...")


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
    return _pair_missing_keys(msgspec.structs.replace(diff, **_find_non_tensors(diff)), expected)


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
            or (isinstance(change, Changed) and not _is_shape_mismatch(change))
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


class _UnpairedTensors(Struct, frozen=True):
    """Tensors that only one side has, by key."""

    missing: Mapping[str, TensorInfo]
    unexpected: Mapping[str, TensorInfo]

    def without(self, keys: Collection[str]) -> "_UnpairedTensors":
        return _UnpairedTensors(
            _without_keys(self.missing, keys), _without_keys(self.unexpected, keys)
        )


def _pair_missing_keys(diff: ModuleDiff, expected: Mapping[str, TensorInfo]) -> ModuleDiff:
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
