"""Draft and ModuleInfo -> Plan, or UndecidedError with every open decision."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from ckptool.compare.module_diff import ModuleDiff, build_module_diff
from ckptool.compare.renames import PrefixRewrite
from ckptool.errors import PlanError
from ckptool.migration.plan.draft import Draft, match_keys
from ckptool.migration.plan.form_steps import iter_form_steps
from ckptool.migration.plan.key_operations import (
    EMPTY_CONTEXT,
    AddPrefix,
    DropKeys,
    InjectTensor,
    Operation,
    RenameKeys,
    StripPrefix,
)
from ckptool.migration.plan.plan_file import Op, Plan, apply_plan
from ckptool.migration.plan.tensor_operations import TieTensors
from ckptool.migration.plan.undecided import UndecidedError, find_open_decisions
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.model import Checkpoint, Kind, ModuleInfo, ModuleTensor


@dataclass(frozen=True, slots=True)
class KeyOverrides:
    """Single keys that the user injects or drops (--inject, --drop)."""

    inject: Mapping[str, str] = field(default_factory=dict)
    """Key -> source."""
    drop: tuple[str, ...] = ()


def suggest_plan(
    draft: Draft, module_info: ModuleInfo | None, sources: ValueSources, overrides: KeyOverrides
) -> Plan:
    """Derive the plan after which the module loads the draft strictly.

    Without a module, the plan has only the overrides.

    Raises:
        UndecidedError: keys remain undecided; it has the open decisions and the partial plan.
    """
    builder = _PlanBuilder(draft, module_info, sources)
    # A key to drop may be a key of the file, or a key after renaming to the module's.
    source_drops = [
        key for key in overrides.drop if match_keys(draft, key) or key in draft.non_tensor_keys
    ]
    builder.add_operations(DropKeys(key=key, why="asked for") for key in source_drops)
    if module_info is not None:
        builder.add_operations(_iter_prefix_changes(builder.diff, builder.draft))
        builder.add_operations(iter_form_steps(builder.diff))
        builder.add_operations(_iter_renames(builder.diff))
    builder.add_operations(
        DropKeys(key=key, why="asked for") for key in overrides.drop if key not in source_drops
    )
    builder.add_operations(
        InjectTensor(key=key, source=source, why="asked for")
        for key, source in overrides.inject.items()
    )
    if module_info is not None:
        builder.add_operations(_tie_operations(builder.diff))
        builder.add_operations(_iter_injections(builder))
        builder.add_operations(_iter_drops(builder.diff))
        if decisions := find_open_decisions(builder.diff):
            name = str(draft.checkpoint.path)
            raise UndecidedError(name, Plan(tuple(builder.ops)), decisions)
    return Plan(tuple(builder.ops))


def predict_load(draft: Draft, module_info: ModuleInfo, *, state_only: bool = False) -> ModuleDiff:
    """Compare the draft's result with the module, with the same code as `diff`.

    With `state_only`, the container has no other state_dicts and entries (safetensors).
    """
    result = build_result_checkpoint(draft)
    if state_only:
        result = replace(result, states=(draft.result_state,), entries=())
    return build_module_diff(result, module_info, draft.state.at)


def build_result_checkpoint(draft: Draft) -> Checkpoint:
    """Return the checkpoint with the draft's result in place of its source state_dict."""
    states = [state for state in draft.checkpoint.states if state.at != draft.state.at]
    return replace(draft.checkpoint, states=(draft.result_state, *states))


class _PlanBuilder:
    """The operations so far, and the draft after them."""

    def __init__(self, draft: Draft, module_info: ModuleInfo | None, sources: ValueSources) -> None:
        self.ops: list[Op] = []
        self.draft = draft
        self.sources = sources
        self._module_info = module_info

    @property
    def diff(self) -> ModuleDiff:
        assert self._module_info is not None
        return predict_load(self.draft, self._module_info)

    def add_operations(self, ops: Iterator[Op]) -> None:
        for op in list(ops):
            self.draft = apply_plan([op], self.draft, self.sources)
            self.ops.append(op)


def _iter_prefix_changes(diff: ModuleDiff, draft: Draft) -> Iterator[Op]:
    """Yield prefix operations, or single renames where those would give other keys."""
    if diff.rewrite is None:
        return
    ops = list(_iter_prefix_operations(diff.rewrite))
    new_keys = diff.rewrite.key_map
    if _gives_keys(ops, draft, new_keys):
        yield from ops
    else:
        why = "the module's keys are without it"
        yield from (RenameKeys(key=old, to=new, why=why) for old, new in new_keys.items())


def _iter_prefix_operations(rewrite: PrefixRewrite) -> Iterator[Op]:
    why = f"{len(rewrite.key_map)} of the file's keys match the module's then"
    for removed in rewrite.removed_segments:
        is_leading = removed.endswith(".")
        prefix = removed if is_leading else f"{removed}."
        yield StripPrefix(prefix=prefix, anywhere=not is_leading, why=why)
    if rewrite.added_prefix:
        yield AddPrefix(prefix=rewrite.added_prefix, why=why)


def _gives_keys(ops: list[Op], draft: Draft, new_keys: Mapping[str, str]) -> bool:
    """Return whether `ops` rename the keys as in `new_keys` (old -> new)."""
    operations: list[Operation] = list(ops)
    try:
        for op in operations:
            draft = op.apply(draft, EMPTY_CONTEXT)
    except PlanError:
        return False
    result_keys = {item.source_key: key for key, item in draft.items.items()}
    return all(result_keys[old] == new for old, new in new_keys.items())


def _iter_renames(diff: ModuleDiff) -> Iterator[Op]:
    for key, old_key in diff.renames.items():
        same_ending = key.rpartition(".")[2] == old_key.rpartition(".")[2]
        description = "name ending" if same_ending else "an old name of a LayerNorm's parameter"
        why = (
            f"one is missing and one unexpected, of one shape and {description}: probably the same"
        )
        yield RenameKeys(key=old_key, to=key, why=why)


def _tie_operations(diff: ModuleDiff) -> Iterator[Op]:
    """Yield tie operations for tied keys that the file omits, as safetensors does."""
    for key, kept_key in diff.tied_missing_keys.items():
        yield TieTensors(
            key=key, to=kept_key, why="one tensor under two names in the module (CK501)"
        )


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
            why = f"a {module_tensor.kind} now, and an attribute of the pickled module then"
            yield InjectTensor(
                key=key, source="attribute", dtype=attribute.dtype, shape=shape, why=why
            )
        elif _is_batch_counter(module_tensor, diff):
            why = "0, as torch fills it in for files from before 0.4.1: only momentum=None reads it"
            yield InjectTensor(key=key, source="literal:0", dtype="int64", shape=(), why=why)
        elif _is_constructible(module_tensor):
            why = "assumed: the value that the constructor makes, the same under two seeds"
            dtype = module_tensor.tensor.dtype
            yield InjectTensor(key=key, source="constructor", dtype=dtype, shape=shape, why=why)


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
            yield DropKeys(key=key, why="the module makes the same value itself (CK205)")
