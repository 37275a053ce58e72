"""MigrationRequest and draft -> Plan, or the questions that are open, and the plan file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.states import (
    describe_place,
    find_best_state,
    get_state,
    list_model_states,
    split_part,
)
from ckptool.errors import PlanError, UnconfirmedRenamesError, UsageError
from ckptool.formats.files.output_group import write_file, write_separately
from ckptool.migration.check.plan_outcome import PlanOutcome
from ckptool.migration.plan.container_limits import (
    SAFETENSORS,
    TORCH,
    keeps_saved_object,
    reject_absent_values,
    reject_packed_weights,
)
from ckptool.migration.plan.draft import Draft, create_draft, is_pickled_array
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.migration.plan.operation import EMPTY_CONTEXT
from ckptool.migration.plan.part_steps import find_part_steps
from ckptool.migration.plan.plan_file import Op, Plan, apply_plan, reverse_plan
from ckptool.migration.plan.rename_steps import iter_loader_prefix_steps
from ckptool.migration.plan.suggest import PlanChoices, SuggestedPlan, suggest_plan
from ckptool.migration.plan.tensor_operations import UntieTensor
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.migration.request import MigrationRequest, choose_output_container
from ckptool.migration.write.provenance import is_applied, read_provenance_text
from ckptool.model import Checkpoint, ModuleInfo, StateDict, tied_keys
from ckptool.modules.submodule import select_submodule
from ckptool.phrases import MAX_NAMED, join_limited, quote_code, quote_path

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule


def choose_plan(
    request: MigrationRequest,
    draft: Draft,
    target_module: "TargetModule | None",
    sources: ValueSources,
) -> SuggestedPlan:
    """Return the plan of the request, or derive one; an empty one if the draft loads as it is.

    Raises:
        UndecidedError: no plan can be derived; `--save-plan` then gets the open decisions.
        UsageError: the request has both a plan and choices.
    """
    if request.plan is None:
        module_info = target_module.module_info if target_module else None
        to = choose_output_container(request)
        has_choices = request.choices != PlanChoices()
        diff = None if has_choices else predict_load(target_module, draft, to)
        loads_whole = diff is not None and diff.loads_whole
        if loads_whole and target_module and target_module.has_custom_load:
            return SuggestedPlan(Plan())
        if diff and (steps := _find_loader_steps(diff, draft, target_module, to)):
            return SuggestedPlan(Plan(steps))
        try:
            first_steps = find_part_steps(draft, module_info, request.at)
            return suggest_plan(
                draft,
                module_info,
                sources,
                request.choices,
                first_steps,
                can_confirm=request.can_confirm_renames and not request.dry_run,
                stores_ties_once=to == SAFETENSORS
                and not (target_module and target_module.has_custom_load),
            )
            # What torch's own upgrades do is written into the file all the same.
        except UndecidedError as error:
            if loads_whole:
                return SuggestedPlan(Plan())
            if _is_answered_by_loader(error, draft, target_module, sources, to):
                return SuggestedPlan(error.plan)
            raise add_undecided_hint(error, request) from error
    if request.choices != PlanChoices():
        raise UsageError(
            "--plan is the complete plan: add what --inject, --drop, --rename and "
            "--accept-renames ask for to it, as steps"
        )
    return SuggestedPlan(reverse_plan(request.plan) if request.reverse else request.plan)


@dataclass(frozen=True, slots=True)
class PlannedResult:
    """A state_dict with its plan applied: what a migration writes, and a load hands on."""

    plan: Plan
    source: Draft
    result: Draft
    diff: ModuleDiff | None
    """The result compared with the module; None without a module."""
    already_applied: bool
    """Whether the source already has this plan applied, by its provenance."""

    @property
    def is_rewritten(self) -> bool:
        """Whether the state that is written differs from the source's, in keys, values or form."""
        result, checkpoint = self.result, self.result.checkpoint
        is_planned = result is not self.source or result.items.keys() != result.state.tensors.keys()
        has_arrays = any(map(is_pickled_array, result.state.tensors.values()))
        has_more = bool(result.state.at or checkpoint.entries or len(checkpoint.states) > 1)
        is_alone = result.is_extracted and has_more
        return is_planned or result.state.role == "module" or has_arrays or is_alone


def apply_suggested(
    request: MigrationRequest,
    to: str,
    suggested: SuggestedPlan,
    draft: Draft,
    target_module: "TargetModule | None",
    sources: ValueSources,
) -> PlannedResult:
    """Apply a plan to the draft, and predict what the module will do with the result.

    Raises:
        PlanError: a step cannot be applied.
    """
    plan = suggested.plan
    record_text = None if request.follows_chain else read_provenance_text(draft.checkpoint)
    already_applied = is_applied(plan, record_text)
    result = draft if already_applied else apply_plan(plan.ops, draft, sources, request.plan_name)
    if request.plan is None and target_module is not None and to == SAFETENSORS:
        untie_steps = tuple(_find_untie_steps(result, target_module.module_info))
        plan = replace(plan, ops=(*plan.ops, *untie_steps))
        result = apply_plan(untie_steps, result, sources) if untie_steps else result
    diff = predict_load(target_module, result, to)
    return PlannedResult(plan, draft, result, diff, already_applied)


def _find_untie_steps(draft: Draft, module_info: ModuleInfo) -> Iterator[Op]:
    """Yield steps for names that are tied in the file alone: the module loads both.

    safetensors stores one name of a tied tensor, and nothing would give it the other.
    """
    tensors = (saved.tensor for saved in module_info.saved_tensors.values())
    groups = {key: keys for keys in tied_keys(tensors) for key in keys}
    for key, kept_key in draft.ties.items():
        is_saved = {key, kept_key} <= module_info.saved_tensors.keys()
        if is_saved and kept_key not in groups.get(key, ()):
            yield UntieTensor(key=key, of=kept_key, why="separate in the module (CK501)")


def check_outcome(
    request: MigrationRequest, planned: PlannedResult, target_module: "TargetModule | None"
) -> None:
    """Have the request judge the plan, where there is a module.

    Raises:
        PlanError: the request refuses it.
    """
    if target_module and planned.diff:
        source_diff = (
            planned.diff
            if planned.result is planned.source
            else target_module.predict_load(planned.source, state_only=False, keeps_versions=True)
        )
        is_derived = request.plan is None
        request.check_plan(PlanOutcome(planned.plan, is_derived, source_diff, planned.diff))


def _is_answered_by_loader(
    error: UndecidedError,
    draft: Draft,
    target_module: "TargetModule | None",
    sources: ValueSources,
    to: str,
) -> bool:
    """Whether only shapes are undecided, and the module's own code loads the file without them.

    What its code drops by that is a finding (CK222) of the result, as it is one of the file.
    """
    if not all(decision.is_about_shapes for decision in error.decisions):
        return False
    diff = predict_load(target_module, apply_plan(error.plan.ops, draft, sources), to)
    return diff is not None and diff.load_outcome is not None and diff.is_strict


def _find_loader_steps(
    diff: ModuleDiff, draft: Draft, target_module: "TargetModule | None", to: str
) -> tuple[Op, ...]:
    """Return the steps of a prefix after which a framework's loader takes all; () without."""
    steps = tuple(iter_loader_prefix_steps(diff, draft))
    if not steps:
        return ()
    result = predict_load(target_module, apply_plan(steps, draft, EMPTY_CONTEXT), to)
    return steps if result is not None and result.loads_whole else ()


def predict_load(target_module: "TargetModule | None", draft: Draft, to: str) -> ModuleDiff | None:
    """Return what the module will do with the result in container `to`; None without a module."""
    if target_module is None:
        return None
    return target_module.predict_load(
        draft,
        state_only=not keeps_saved_object(draft, to),
        keeps_versions=to != SAFETENSORS,
    )


def ask_again(
    suggested: SuggestedPlan, checkpoint: Checkpoint, error: UnconfirmedRenamesError
) -> UndecidedError:
    """Return the questions on the renames that the old module's outputs do not confirm."""
    decisions = tuple(
        decision
        for decision in suggested.open_decisions
        if (renames := decision.renames)
        and (not error.keys or {*error.keys} & {*renames.pairs.values()})
    )
    asked_keys = {k for d in decisions if d.renames for k in d.renames.pairs.values()}
    ops = tuple(op for op in suggested.plan.ops if getattr(op, "to", "") not in asked_keys)
    return UndecidedError(str(checkpoint.path), Plan(ops), decisions, str(error))


def add_undecided_hint(error: UndecidedError, request: MigrationRequest) -> UndecidedError:
    """Save the derived steps with the open decisions as comments; return the error with a hint."""
    if request.save_plan is None:
        hint = "--save-plan FILE writes the plan so far, with the questions, for editing"
    else:
        with write_separately():  # the error discards what the command gathers
            save_plan(request, error.draft_plan_text)
        hint = (
            f"the plan so far is in {request.save_plan}, with the questions as comments: answer"
            f" them there, then run with --plan {quote_path(str(request.save_plan))}"
        )
    if error.accepts_renames:
        hint = f"--accept-renames accepts the unambiguous renames; {hint}"
    return error.add_hint(hint)


def save_plan(request: MigrationRequest, text: str) -> None:
    if request.save_plan is None:
        return
    write_file(request.save_plan, text.encode(), force=request.force)


def select_state(
    checkpoint: Checkpoint, module_info: ModuleInfo | None, request: MigrationRequest, to: str
) -> StateDict:
    """Return the state_dict to migrate: at `request.at`, else the best match, else the only one.

    Raises:
        PlanError: there are several and no module, or the state has no tensors to write.
    """
    if request.at is not None:
        state = get_state(checkpoint, request.at)
        owner, _ = split_part(checkpoint, request.at)
        state = state if state.tensors or owner is None else owner
    elif module_info is not None:
        path = module_info.submodule
        part_info = select_submodule(module_info, path) if path else module_info
        state = find_best_state(checkpoint, part_info)
    else:
        model_states = list_model_states(checkpoint) or [*checkpoint.states]
        if len(model_states) > 1 and not _keeps_all_states(checkpoint, request, to):
            places = [state.at or "." for state in model_states]
            state_paths = join_limited(places, MAX_NAMED, quote_code)
            raise PlanError(f"{checkpoint.path}: has states at {state_paths}: name one with --at")
        state = model_states[0] if model_states else StateDict("", {})
    reject_packed_weights(checkpoint)
    takes_meta = request.conversion is not None and to == TORCH  # as torch.save
    reject_absent_values(checkpoint.path, state, module_info, takes_meta=takes_meta)
    if not state.tensors and not state.unsaved_tensors:
        content = describe_place(checkpoint, state.at)
        is_there = f": it is {content}" if content else ""
        raise PlanError(f"{checkpoint.path}: there are no tensors at `{state.at or '.'}`{is_there}")
    return state


def _keeps_all_states(checkpoint: Checkpoint, request: MigrationRequest, to: str) -> bool:
    """Whether a conversion writes every state as it is, so that none has to be named."""
    if request.conversion is None or request.conversion.is_state_alone:
        return False
    draft = create_draft(checkpoint, checkpoint.states[0])
    return keeps_saved_object(draft, to) and request.choices == PlanChoices()
