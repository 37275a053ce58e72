"""Checkpoint x ModuleInfo -> ModuleDiff: key changes and their explanations, without severity."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

from ckptool import values
from ckptool.errors import UsageError
from ckptool.figures import CastEffect
from ckptool.fused import FusedProjection, find_fused_projections
from ckptool.matching import (
    WRAPPERS,
    PrefixRewrite,
    find_prefix_rewrite,
    find_renames,
    parse_tie_metadata,
)
from ckptool.model import Checkpoint, Container, Kind, ModuleInfo, StateDict, TensorInfo, tied_keys
from ckptool.statistics.figures import Tolerances, ValueDifference
from ckptool.styles import Reparametrization, find_gamma_beta_renames, find_reparametrizations

COMPARED_FIELDS: Final = ("shape", "dtype", "layout")
"""Fields of TensorInfo that are compared between two files."""


_SINGLE_NAME_CONTAINERS: Final = (Container.SAFETENSORS, Container.SHARDED_SAFETENSORS)
"""Containers that store tied tensors once, under one key."""


class Missing(Struct, frozen=True):
    """In `expected`, not in `actual`: load_state_dict's missing_keys."""

    expected: TensorInfo

    @property
    def key(self) -> str:
        return self.expected.key


class Unexpected(Struct, frozen=True):
    """In `actual`, not in `expected`: load_state_dict's unexpected_keys."""

    actual: TensorInfo

    @property
    def key(self) -> str:
        return self.actual.key


class Changed(Struct, frozen=True):
    """In both, with different values of `fields`."""

    expected: TensorInfo
    actual: TensorInfo
    fields: frozenset[str]

    @property
    def key(self) -> str:
        return self.expected.key


Change = Missing | Unexpected | Changed


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
    rewrite: PrefixRewrite | None = None
    renames: Mapping[str, str] = {}
    """Missing key -> unexpected key that is probably the same tensor."""
    equal_values: Mapping[str, bool] = {}
    """Unexpected key that is unsaved state of the module -> whether the values are equal; only
    keys whose values could be compared."""
    reparametrizations: tuple[Reparametrization, ...] = ()
    """Parameters in different parametrization styles; those with `handled_by_torch_hook` are not
    in `changes`."""
    fused_projections: tuple[FusedProjection, ...] = ()
    """Query, key and value projections: one tensor on one side, three on the other."""
    tied_missing_keys: Mapping[str, str] = {}
    """Missing key -> key of the file that is tied to it in the module."""
    diverged_ties: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied by the module or by the file's metadata, with different values."""
    better_state: StateDict | None = None
    """Another state of the file that matches the module better than `state`; None if none does."""
    cast_effects: Mapping[str, CastEffect] = {}
    """Key with another dtype -> effect of the cast on its values; empty if values were not read."""
    constant_fingerprints: Mapping[str, tuple[str, ...]] = {}
    """Key of a buffer that every construction makes the same -> its fingerprint in the file, then
    those in the half-precision dtypes that hold it exactly; empty if values were not read."""

    @property
    def missing_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Missing))
        return (*tensors, *self.missing_non_tensors)

    @property
    def unexpected_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Unexpected))
        return (*tensors, *self.unexpected_non_tensors)

    @property
    def explained_keys(self) -> frozenset[str]:
        """Missing and unexpected keys that a rename, tie, rewrite, style or fusion explains."""
        keys = {*self.renames, *self.renames.values(), *self.tied_missing_keys}
        if self.rewrite:
            keys |= {*self.rewrite.key_map, *self.rewrite.key_map.values()}
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
    def shape_mismatches(self) -> tuple[Changed, ...]:
        """Changes that load_state_dict reports as "size mismatch", with strict=False too."""
        return tuple(
            c
            for c in self.changes
            if isinstance(c, Changed) and "shape" in c.fields and not is_scalar_quirk(c)
        )

    @property
    def matched_keys(self) -> tuple[str, ...]:
        unmatched_keys = {c.key for c in self.changes if isinstance(c, Missing)}
        unmatched_keys |= {c.key for c in self.shape_mismatches}
        return tuple(key for key in self.module.saved_tensors if key not in unmatched_keys)

    @property
    def coverage(self) -> float:
        """Fraction (0.0 to 1.0) of the parameters' elements that load; 1.0 without parameters."""
        parameters = [
            module_tensor
            for module_tensor in self.module.saved_tensors.values()
            if module_tensor.kind is Kind.PARAMETER
        ]
        total_numel = sum(module_tensor.tensor.numel for module_tensor in parameters)
        loadable_keys = {*self.matched_keys, *self.tied_missing_keys}
        loaded_numel = sum(
            module_tensor.tensor.numel
            for module_tensor in parameters
            if module_tensor.key in loadable_keys
        )
        return loaded_numel / total_numel if total_numel else 1.0

    @property
    def retied_keys(self) -> Mapping[str, str]:
        """Missing key -> tied key of the file, which the safetensors loader and `migrate` retie.

        Empty for containers that store tied tensors under every name.
        """
        return (
            self.tied_missing_keys if self.checkpoint.container in _SINGLE_NAME_CONTAINERS else {}
        )

    @property
    def is_strict(self) -> bool:
        """Whether `load_state_dict(strict=True)` succeeds, after `retied_keys` are tied again."""
        missing = [key for key in self.missing_keys if key not in self.retied_keys]
        return not (missing or self.unexpected_keys or self.shape_mismatches)


class CheckpointDiff(Struct, frozen=True):
    """Comparison of two checkpoints: tensors by key, values if they were read, plain data."""

    old: Checkpoint
    new: Checkpoint
    old_tensors: Mapping[str, TensorInfo]
    new_tensors: Mapping[str, TensorInfo]
    places: tuple[str, str]
    """`at` of the compared state in (old, new); "*" if all states of both are compared."""
    changes: tuple[Change, ...]
    renames: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    proved_renames: frozenset[str]
    """Removed keys whose rename is confirmed by equal values."""
    differing_keys: tuple[str, ...] | None
    """Keys in both whose values differ; None if values were not read."""
    uncompared_keys: Mapping[str, str]
    """Key in both whose values could not be compared -> reason."""
    changed_entries: tuple[str, ...]
    """`at` of plain entries (an epoch, a configuration) that differ."""
    value_differences: Mapping[str, ValueDifference] = {}
    """Key whose values or dtypes differ -> statistics of the difference."""
    unmeasured_keys: Mapping[str, str] = {}
    """Key whose difference could not be measured -> reason."""
    tolerances: Tolerances | None = None
    """Tolerances within which values count as equal; None: values must be identical."""
    diverged_ties: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied in the old file that have different values in the new one."""

    @property
    def keys_beyond_tolerance(self) -> tuple[str, ...]:
        """Keys whose values differ by more than the tolerances."""
        if self.tolerances is None:
            return self.differing_keys or ()
        return tuple(
            key
            for key in self.differing_keys or ()
            if key not in self.value_differences or not self.value_differences[key].close
        )

    @property
    def ties_differ(self) -> bool:
        return tied_keys(self.old_tensors.values()) != tied_keys(self.new_tensors.values())

    @property
    def is_relocated(self) -> bool:
        """Whether the container or the `at` of the state differs between the files."""
        return self.old.container != self.new.container or self.places[0] != self.places[1]

    @property
    def has_differences(self) -> bool:
        ties_lost = self.ties_differ and not self.is_relocated
        return bool(self.changes or self.keys_beyond_tolerance or self.changed_entries or ties_lost)


def iter_changes(
    expected: Mapping[str, TensorInfo], actual: Mapping[str, TensorInfo], fields: Iterable[str]
) -> Iterator[Change]:
    """Yield missing, changed and unexpected tensors: in the order of `expected`, then `actual`.

    Only `fields` of TensorInfo are compared.
    """
    field_names = tuple(fields)
    for key, expected_tensor in expected.items():
        actual_tensor = actual.get(key)
        if actual_tensor is None:
            yield Missing(expected_tensor)
        else:
            changed_fields = frozenset(
                f for f in field_names if getattr(expected_tensor, f) != getattr(actual_tensor, f)
            )
            if changed_fields:
                yield Changed(expected_tensor, actual_tensor, changed_fields)
    for key, actual_tensor in actual.items():
        if key not in expected:
            yield Unexpected(actual_tensor)


def is_scalar_quirk(change: Changed) -> bool:
    """Whether torch loads a 1-d tensor into a 0-d one (compatibility with torch 0.3)."""
    return (
        change.expected.shape == ()
        and len(change.actual.shape) == 1
        and change.actual.shape != (0,)
    )


def strict_load_obstacles(diff: ModuleDiff) -> str:
    """Return a text with the keys that prevent strict loading; "" if it succeeds."""
    counts = (
        ("missing", tuple(key for key in diff.missing_keys if key not in diff.retied_keys)),
        ("unexpected", diff.unexpected_keys),
        ("of another shape", tuple(change.key for change in diff.shape_mismatches)),
    )
    return "; ".join(f"{len(keys)} {label} ({_join_few(keys)})" for label, keys in counts if keys)


def _join_few(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")


def build_module_diff(checkpoint: Checkpoint, module: ModuleInfo, at: str | None) -> ModuleDiff:
    """Compare the state at `at` with the module; with None, the state that matches best."""
    best_match = find_best_state(checkpoint, module)
    state = best_match if at is None else get_state(checkpoint, at)
    expected = {key: module_tensor.tensor for key, module_tensor in module.saved_tensors.items()}
    lazy_keys = {key for key, tensor in expected.items() if tensor.layout == "lazy"}
    reparametrizations = find_reparametrizations(
        expected,
        state.tensors,
        {prefix: module_class.name for prefix, module_class in module.modules.items()},
    )
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
    )
    better_state = (
        best_match if score_match(best_match, module) > score_match(state, module) else None
    )
    diff = ModuleDiff(
        checkpoint,
        state,
        module,
        changes,
        reparametrizations=reparametrizations,
        better_state=better_state,
    )
    return _pair_missing_keys(msgspec.structs.replace(diff, **_find_non_tensors(diff)), expected)


def _find_non_tensors(diff: ModuleDiff) -> dict[str, tuple[str, ...]]:
    """Return fields of ModuleDiff: the keys without a tensor that only one side has."""
    state, module = diff.state, diff.module
    prefix = f"{state.at}." if state.at else ""
    # A tuple of tensors (packed parameters) is described as a nested state.
    places = {s.at.removeprefix(prefix) for s in diff.checkpoint.states if s.at.startswith(prefix)}
    file_keys = {*state.non_tensors, *state.tensors, *places}
    return {
        "missing_non_tensors": tuple(k for k in module.non_tensors if k not in file_keys),
        "unexpected_non_tensors": tuple(
            k for k in state.non_tensors if k not in module.non_tensors
        ),
    }


def _pair_missing_keys(diff: ModuleDiff, expected: Mapping[str, TensorInfo]) -> ModuleDiff:
    """Pair missing with unexpected tensors: rewrites, renames, fused projections, ties."""
    state, module = diff.state, diff.module
    missing = {c.key: c.expected for c in diff.changes if isinstance(c, Missing)}
    unexpected = {c.key: c.actual for c in diff.changes if isinstance(c, Unexpected)}
    rewrite = find_prefix_rewrite(
        [*missing.values()], [*unexpected.values()], expected, state.tensors
    )
    explained_keys = {
        *(rewrite.key_map.values() if rewrite else ()),
        *(rewrite.key_map if rewrite else ()),
    }
    explained_keys |= {
        k
        for reparametrization in diff.reparametrizations
        for k in (*reparametrization.file_keys, *reparametrization.module_keys)
    }
    unexplained_missing, unexplained_unexpected = (
        _without_keys(missing, explained_keys),
        _without_keys(unexpected, explained_keys),
    )
    classes = {prefix: module_class.name for prefix, module_class in module.modules.items()}
    renames = find_gamma_beta_renames(unexplained_missing, unexplained_unexpected, classes)
    explained_keys |= {*renames, *renames.values()}
    fused_projections = find_fused_projections(
        [*_without_keys(missing, explained_keys).values()],
        [*_without_keys(unexpected, explained_keys).values()],
    )
    explained_keys |= {
        k
        for projection in fused_projections
        for k in (projection.fused_key, *projection.piece_keys)
    }
    unexplained_missing, unexplained_unexpected = (
        _without_keys(missing, explained_keys),
        _without_keys(unexpected, explained_keys),
    )
    renames |= find_renames([*unexplained_missing.values()], [*unexplained_unexpected.values()])
    return msgspec.structs.replace(
        diff,
        rewrite=rewrite,
        renames=renames,
        fused_projections=fused_projections,
        diverged_ties=_find_diverged_ties(diff),
        tied_missing_keys={
            k: v
            for k, v in _find_tied_missing_keys(module, state).items()
            if k in missing and k not in explained_keys
        },
        equal_values=_compare_unsaved_values([*unexpected.values()], module),
    )


def _without_keys(tensors: Mapping[str, TensorInfo], keys: set[str]) -> dict[str, TensorInfo]:
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def _find_diverged_ties(diff: ModuleDiff) -> tuple[tuple[str, str], ...]:
    """Return pairs of keys declared tied that are separate tensors with different values."""
    file_tensors = diff.state.tensors
    groups = tied_keys(module_tensor.tensor for module_tensor in diff.module.saved_tensors.values())
    tied_pairs = [(group[0], second) for group in groups for second in group[1:]]
    tied_pairs += [
        (kept_key, name) for name, kept_key in parse_tie_metadata(diff.checkpoint.metadata).items()
    ]
    separate_pairs = [
        (first, second)
        for first, second in dict.fromkeys(tied_pairs)
        if first in file_tensors
        and second in file_tensors
        and not tied_keys((file_tensors[first], file_tensors[second]))
    ]
    results = values.equal_many(
        [(file_tensors[first], file_tensors[second]) for first, second in separate_pairs]
    )
    return tuple(
        pair for pair, is_equal in zip(separate_pairs, results, strict=True) if is_equal is False
    )


def _find_tied_missing_keys(module: ModuleInfo, state: StateDict) -> dict[str, str]:
    """Return saved key missing in the file -> key in the file that is tied to it."""
    missing_to_present: dict[str, str] = {}
    for group in tied_keys(module_tensor.tensor for module_tensor in module.saved_tensors.values()):
        present_keys = [
            key
            for key in group
            if key in state.tensors and state.tensors[key].shape == module.tensors[key].tensor.shape
        ]
        if present_keys:
            missing_to_present |= {
                key: present_keys[0] for key in group if key not in state.tensors
            }
    return missing_to_present


def get_state(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at` ("." is the root); without tensors there, an empty state."""
    place = "" if at == "." else at
    for state in checkpoint.states:
        if state.at == place:
            return state
    return StateDict(
        at=place, tensors=MappingProxyType({}), non_tensors=_find_child_keys(checkpoint, place)
    )


def require_state(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at`.

    Raises:
        UsageError: the file has no state there.
    """
    state = get_state(checkpoint, at)
    if not state.tensors and all(candidate.at != state.at for candidate in checkpoint.states):
        places = ", ".join(s.at or "." for s in checkpoint.states) or "none"
        raise UsageError(f"{checkpoint.path}: no state at --at {at}; it has: {places}")
    return state


def find_best_state(checkpoint: Checkpoint, module: ModuleInfo) -> StateDict:
    """Return the state that matches `module` best: the first of several, empty if none."""
    if not checkpoint.states:
        return StateDict(at="", tensors=MappingProxyType({}))
    candidates = [s for s in checkpoint.states if s.role != "tensors"] or checkpoint.states
    return max(candidates, key=lambda state: score_match(state, module))


def equally_good_states(
    checkpoint: Checkpoint, module: ModuleInfo, chosen_state: StateDict
) -> tuple[str, ...]:
    """Return `at` ("." for the root) of other states that match as well as `chosen_state`."""
    best_score = score_match(chosen_state, module)
    other_states = [s for s in checkpoint.states if s.at != chosen_state.at and s.role != "tensors"]
    return tuple(
        s.at or "." for s in other_states if s.tensors and score_match(s, module) == best_score
    )


def score_match(state: StateDict, module: ModuleInfo) -> tuple[int, int]:
    """Return (tensors that match, exactly or without wrapper segments; -unmatched tensors)."""
    expected = {
        (key, module_tensor.tensor.shape) for key, module_tensor in module.saved_tensors.items()
    }
    last_segments = {key.rsplit(".", 1)[-1] for key, _ in expected}
    tails = {_key_tail(key) for key, _ in expected}
    exact_count = sum((key, t.shape) in expected for key, t in state.tensors.items())
    loose_count = sum(
        _key_tail(key) in tails and key.rsplit(".", 1)[-1] in last_segments for key in state.tensors
    )
    return max(exact_count, min(loose_count, len(expected))), exact_count - len(state.tensors)


def _key_tail(key: str) -> str:
    return ".".join([s for s in key.split(".") if s not in WRAPPERS][-2:])


def _find_child_keys(checkpoint: Checkpoint, at: str) -> dict[str, str]:
    prefix = f"{at}." if at else ""
    places = [s.at for s in checkpoint.states] + [e.at for e in checkpoint.entries]
    relative_places = [p.removeprefix(prefix) for p in places if p.startswith(prefix) and p != at]
    return {name.split(".", 1)[0]: "no tensor" for name in relative_places if name}


def _compare_unsaved_values(unexpected: list[TensorInfo], module: ModuleInfo) -> dict[str, bool]:
    """Return unexpected key -> whether its fingerprint is that of the module's unsaved tensor."""
    equal_values: dict[str, bool] = {}
    for tensor in unexpected:
        module_tensor = module.tensors.get(tensor.key)
        if module_tensor is not None and module_tensor.fingerprint:
            file_fingerprint = values.fingerprint_tensor(tensor)
            if file_fingerprint is not None:
                equal_values[tensor.key] = file_fingerprint == module_tensor.fingerprint
    return equal_values


def all_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the tensors of all states; the state's `at` is prefixed to each key."""
    prefixed_tensors = {
        f"{state.at}.{key}" if state.at else key: tensor
        for state in checkpoint.states
        for key, tensor in state.tensors.items()
    }
    return {
        key: tensor if tensor.key == key else msgspec.structs.replace(tensor, key=key)
        for key, tensor in prefixed_tensors.items()
    }
