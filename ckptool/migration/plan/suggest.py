"""Draft and ModuleInfo -> Plan, or UndecidedError with every open decision."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.errors import PlanError
from ckptool.migration.plan.draft import Draft, key_suggestion, match_keys
from ckptool.migration.plan.form_steps import iter_form_steps
from ckptool.migration.plan.key_operations import DropKeys, InjectTensor, RenameKeys
from ckptool.migration.plan.open_decisions import OpenDecision, UndecidedError, find_open_decisions
from ckptool.migration.plan.part_steps import ask_which_part
from ckptool.migration.plan.plan_file import Op, Plan, apply_plan
from ckptool.migration.plan.rename_steps import (
    build_chosen_renames,
    build_rename_steps,
    iter_prefix_steps,
)
from ckptool.migration.plan.tensor_operations import CastTensors, TieTensors, UntieTensor
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.model import Checkpoint, Kind, ModuleInfo, ModuleTensor, tied_keys
from ckptool.phrases import quote_shell
from ckptool.values.fingerprint_many import fingerprint_tensor
from ckptool.values.telling_values import has_telling_values

_CONFIRMED: Final = (
    "confirmed by the old module's outputs: bitwise equal, and different with other values"
)


class PlanChoices(Struct, frozen=True):
    """What the user decides about keys and values."""

    inject: Mapping[str, str] = {}
    """Key, or glob of missing keys, -> source (--inject)."""
    drop: tuple[str, ...] = ()
    """Keys, or globs of them (--drop)."""
    renames: Mapping[str, str] = {}
    """Key or pattern in the file -> key or pattern in the module (--rename)."""
    accept_renames: bool = False
    """Whether renames that are unambiguous are taken without proof (--accept-renames)."""
    dtype: str = ""
    """Dtype that floating point tensors are cast to, "" to keep theirs (--dtype)."""


class SuggestedPlan(Struct, frozen=True):
    """A derived plan, and what of it waits for the outputs of the old module."""

    plan: Plan
    keys_to_confirm: tuple[str, ...] = ()
    """Keys of the module whose renames the outputs of the old module have to confirm."""
    open_decisions: tuple[OpenDecision, ...] = ()
    """The questions that are open if the outputs do not confirm them."""


def suggest_plan(
    draft: Draft,
    module_info: ModuleInfo | None,
    sources: ValueSources,
    choices: PlanChoices,
    first_steps: tuple[Op, ...] = (),
    *,
    can_confirm: bool = False,
    stores_ties_once: bool = False,
) -> SuggestedPlan:
    """Derive the plan after which the module loads the draft strictly.

    Every step is proved, exact, or chosen by the user. Without a module, the plan has only the
    user's choices.

    Args:
        draft: the unchanged state_dict.
        module_info: the module; None without one.
        sources: where injected values are looked for.
        choices: of the user.
        first_steps: steps before all others, where only a part of file or module is meant.
        can_confirm: whether the result is run against the old module, so that unambiguous renames
            may be tried.
        stores_ties_once: whether the result has one key for tied tensors, as safetensors has, and
            the module reads each by its own.

    Raises:
        UndecidedError: keys remain undecided; it has the open decisions and the partial plan.
    """
    builder = _PlanBuilder(draft, module_info, sources)
    builder.add_operations(iter(first_steps))
    if module_info is not None and choices == PlanChoices():
        ask_which_part(builder.diff, Plan(tuple(builder.ops)))
    # A key to drop may be a key of the file, or a key after renaming to the module's.
    source_drops = [
        key
        for key in choices.drop
        if match_keys(builder.draft, key) or key in builder.draft.non_tensor_keys
    ]
    builder.add_operations(DropKeys(key=key, why="asked for") for key in source_drops)
    # So may a key to rename: as it is in the file, or without a wrapper's prefix.
    later_renames = builder.add_chosen_renames(choices.renames)
    if module_info is not None:
        builder.add_operations(iter_prefix_steps(builder.diff, builder.draft, choices.inject))
        builder.add_operations(iter_form_steps(builder.diff))
        builder.add_operations(builder.iter_documented_renames())
        builder.add_operations(_iter_equal_renames(builder.diff))
    if remaining := builder.add_chosen_renames(later_renames):
        raise _build_unmatched_error(builder.draft, next(iter(remaining.items())))
    tried = _take_renames(builder, choices, can_confirm=can_confirm) if module_info else ()
    builder.add_operations(
        DropKeys(key=key, why="asked for") for key in choices.drop if key not in source_drops
    )
    builder.add_operations(
        InjectTensor(key=key, source=source, why="asked for")
        for key, source in _iter_chosen_injections(choices, builder)
    )
    if choices.dtype:
        builder.add_operations(iter([CastTensors(dtype=choices.dtype, why="asked for")]))
    if module_info is not None:
        builder.add_operations(_tie_operations(builder.diff))
        builder.add_operations(_iter_injections(builder))
        builder.add_operations(_iter_drops(builder.diff))
        if stores_ties_once:
            builder.add_operations(_iter_unties(builder.diff))
        if decisions := find_open_decisions(builder.diff):
            name = str(draft.checkpoint.path)
            raise UndecidedError(name, Plan(tuple(builder.ops)), (*tried, *decisions))
    keys_to_confirm = [key for d in tried if d.renames for key in d.renames.pairs.values()]
    return SuggestedPlan(Plan(tuple(builder.ops)), tuple(keys_to_confirm), tried)


def _take_renames(
    builder: "_PlanBuilder", choices: PlanChoices, *, can_confirm: bool
) -> tuple[OpenDecision, ...]:
    """Add the unambiguous renames that the user accepts; return those that are to be confirmed."""
    tried: list[OpenDecision] = []
    for decision in find_open_decisions(builder.diff):
        group = decision.renames
        if group is None or not decision.is_acceptable:
            continue
        if choices.accept_renames:
            builder.add_renames(group, assumption=_describe_assumption(group))
        elif can_confirm:
            builder.add_renames(group, why=_CONFIRMED)
            tried.append(decision)
    return tuple(tried)


def compare_keys(draft: Draft, module_info: ModuleInfo) -> ModuleDiff:
    """Compare keys and shapes of the draft's result with the module's."""
    return build_module_diff(build_result_checkpoint(draft), module_info, draft.state.at)


def build_result_checkpoint(draft: Draft) -> Checkpoint:
    """Return the checkpoint with the draft's result in place of its source state_dict."""
    packed_places = draft.packed_places
    states = [
        replace(state, at=packed_places.get(state.at, state.at))
        for state in draft.checkpoint.states
        if state.at != draft.state.at
    ]
    return replace(draft.checkpoint, states=(draft.result_state, *states))


class _PlanBuilder:
    """The operations so far, and the draft after them."""

    def __init__(self, draft: Draft, module_info: ModuleInfo | None, sources: ValueSources) -> None:
        self.ops: list[Op] = []
        self._draft = draft
        self.sources = sources
        self._module_info = module_info

    @property
    def draft(self) -> Draft:
        return self._draft

    @cached_property
    def diff(self) -> ModuleDiff:
        """The draft compared with the module, once until an operation changes the draft."""
        assert self._module_info is not None
        return compare_keys(self._draft, self._module_info)

    @property
    def has_module(self) -> bool:
        return self._module_info is not None

    def add_chosen_renames(self, renames: Mapping[str, str]) -> Mapping[str, str]:
        """Add those whose keys the draft has now; return the others."""
        groups = _list_rename_groups(self.diff) if renames and self._module_info else ()
        steps, remaining = build_chosen_renames(renames, groups, self._keys)
        self.add_operations(iter(steps))
        return remaining

    def add_renames(self, group: RenameGroup, *, why: str = "", assumption: str = "") -> None:
        self.add_operations(build_rename_steps(group, self._keys, why, assumption))

    def iter_documented_renames(self) -> Iterator[Op]:
        """Yield the renames that a framework documents: gamma and beta of a LayerNorm."""
        for group in self.diff.rename_groups:
            if group.is_documented:
                yield from build_rename_steps(group, self._keys)

    @property
    def _keys(self) -> tuple[str, ...]:
        return (*self.draft.items, *self.draft.non_tensor_keys)

    def add_operations(self, ops: Iterator[Op]) -> None:
        for op in list(ops):
            self._draft = apply_plan([op], self._draft, self.sources)
            self.ops.append(op)
            self.__dict__.pop("diff", None)


def _iter_equal_renames(diff: ModuleDiff) -> Iterator[Op]:
    """Yield renames of buffers whose values in the file are those that the module makes itself."""
    missing: dict[object, list[ModuleTensor]] = {}
    for key in diff.missing_keys:
        module_tensor = diff.module.saved_tensors.get(key)
        if module_tensor and _is_constructible(module_tensor) and module_tensor.fingerprint:
            form = module_tensor.tensor.dtype, module_tensor.tensor.shape
            missing.setdefault(form, []).append(module_tensor)
    for key in diff.unexpected_keys:
        tensor = diff.state.tensors.get(key)
        candidates = missing.get((tensor.dtype, tensor.shape), []) if tensor else []
        fingerprint = fingerprint_tensor(tensor) if tensor and candidates else None
        equal = next((c for c in candidates if c.fingerprint == fingerprint), None)
        if equal is not None and tensor is not None:
            candidates.remove(equal)
            why = "its values are the ones the module computes itself"
            assumption = "" if has_telling_values(tensor) else _describe_doubt(key, equal.key)
            yield RenameKeys(key=key, to=equal.key, why=why, assumption=assumption)


def _iter_chosen_injections(
    choices: PlanChoices, builder: "_PlanBuilder"
) -> Iterator[tuple[str, str]]:
    """Yield (key, source): of a pattern, each missing key; `#*` in a source is that key then."""
    for pattern, source in choices.inject.items():
        if "*" not in pattern or not builder.has_module:
            yield pattern, source
            continue
        keys = [key for key in builder.diff.missing_keys if fnmatchcase(key, pattern)]
        if not keys:
            raise PlanError(
                f"--inject {quote_shell(f'{pattern}={source}')}: no missing key matches"
            )
        for key in keys:
            yield key, f"{source[:-1]}{key}" if source.endswith("#*") else source


def _list_rename_groups(diff: ModuleDiff) -> tuple[RenameGroup, ...]:
    """Return the renames that the questions are about, a prefix that is none of a wrapper's too."""
    return tuple(d.renames for d in find_open_decisions(diff) if d.renames is not None)


def _build_unmatched_error(draft: Draft, rename: tuple[str, str]) -> PlanError:
    old, new = rename
    return PlanError(
        f"--rename {quote_shell(f'{old}={new}')}: no key matches{key_suggestion(draft, old)}"
    )


def _describe_assumption(group: RenameGroup) -> str:
    return f"`{group.old_pattern}` was renamed to `{group.new_pattern}`: {group.evidence}"


def _describe_doubt(old_key: str, new_key: str) -> str:
    return (
        f"`{old_key}` was renamed to `{new_key}`: the values are equal, but too few or too simple "
        "to prove it"
    )


def _tie_operations(diff: ModuleDiff) -> Iterator[Op]:
    """Yield tie operations for tied keys that the file omits, as safetensors does."""
    for key, kept_key in diff.tied_missing_keys.items():
        yield TieTensors(key=key, to=kept_key, why="tied in the module (CK501)")


def _iter_unties(diff: ModuleDiff) -> Iterator[Op]:
    """Yield untie operations for keys that are tied in the file and separate in the module."""
    saved_tensors = diff.module.saved_tensors
    module_groups = tied_keys(saved.tensor for saved in saved_tensors.values())
    group_numbers = {key: number for number, group in enumerate(module_groups) for key in group}
    for group in tied_keys(diff.state.tensors.values()):
        first, *others = [key for key in group if key in saved_tensors] or [""]
        for key in others:
            if group_numbers.get(key, key) != group_numbers.get(first, first):
                why = "separate in the module; tied tensors have one key in safetensors"
                yield UntieTensor(key=key, of=first, why=why)


def _iter_injections(builder: _PlanBuilder) -> Iterator[Op]:
    """Yield injections of missing tensors: from an attribute, else from the constructor."""
    diff = builder.diff
    for key in diff.missing_keys:
        module_tensor = diff.module.saved_tensors.get(key)
        if module_tensor is None:
            continue
        shape, attribute = (
            module_tensor.tensor.shape,
            builder.sources.find_attribute(key, builder.draft),
        )
        if attribute is not None and attribute.shape == shape:
            why = f"a {module_tensor.kind} now; it was an attribute of the pickled module"
            yield InjectTensor(
                key=key, source="attribute", dtype=attribute.dtype, shape=shape, why=why
            )
        elif _is_batch_counter(module_tensor, diff):
            why = "0, as torch fills it in for files from before 0.4.1: only momentum=None reads it"
            yield InjectTensor(key=key, source="literal:0", dtype="int64", shape=(), why=why)
        elif _is_constructible(module_tensor):
            yield InjectTensor(
                key=key,
                source="constructor",
                dtype=module_tensor.tensor.dtype,
                shape=shape,
                why="the value that the constructor always computes",
                assumption=f"the old code did not modify `{key}` after construction",
            )


def _is_batch_counter(module_tensor: ModuleTensor, diff: ModuleDiff) -> bool:
    """Return whether it is num_batches_tracked of a norm layer whose statistics the file has."""
    owner, _, name = module_tensor.key.rpartition(".")
    has_statistics = f"{owner}.running_var".lstrip(".") in diff.state.tensors
    is_torch_counter = module_tensor.owner.startswith("torch.") and (
        module_tensor.tensor.dtype,
        module_tensor.tensor.shape,
    ) == (
        "int64",
        (),
    )
    return name == "num_batches_tracked" and has_statistics and is_torch_counter


def _is_constructible(module_tensor: ModuleTensor) -> bool:
    return module_tensor.kind is Kind.BUFFER and module_tensor.is_recomputable


def _iter_drops(diff: ModuleDiff) -> Iterator[Op]:
    for key in diff.unexpected_keys:
        if diff.equal_values.get(key) and key in diff.module.unsaved_tensors:
            yield DropKeys(key=key, why="the module computes the same value itself (CK205)")
