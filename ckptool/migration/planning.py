"""MigrationRequest and draft -> Plan, or the questions that are open, and the plan file."""

import shlex
from typing import TYPE_CHECKING

from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import UnconfirmedRenamesError, UsageError
from ckptool.formats.files.atomic import write_file
from ckptool.migration.plan.container_limits import SAFETENSORS, keeps_saved_object
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.migration.plan.part_steps import find_part_steps
from ckptool.migration.plan.plan_file import Plan, reverse_plan
from ckptool.migration.plan.suggest import PlanChoices, SuggestedPlan, suggest_plan
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.migration.request import MigrationRequest, choose_output_container
from ckptool.model import Checkpoint

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
        loads_whole = request.choices == PlanChoices() and _loads_whole(
            request, draft, target_module
        )
        if loads_whole and target_module and target_module.has_custom_load:
            return SuggestedPlan(Plan())
        try:
            first_steps = find_part_steps(draft, module_info, request.at)
            return suggest_plan(
                draft,
                module_info,
                sources,
                request.choices,
                first_steps,
                can_confirm=request.can_confirm_renames and not request.dry_run,
            )
            # What torch's own upgrades do is written into the file all the same.
        except UndecidedError as error:
            if loads_whole:
                return SuggestedPlan(Plan())
            raise add_undecided_hint(error, request) from error
    if request.choices != PlanChoices():
        raise UsageError(
            "--plan is the complete plan: add what --inject, --drop, --rename and "
            "--accept-renames ask for to it, as steps"
        )
    return SuggestedPlan(reverse_plan(request.plan) if request.reverse else request.plan)


def _loads_whole(
    request: MigrationRequest, draft: Draft, target_module: "TargetModule | None"
) -> bool:
    """Whether the module's own loading code loads the unchanged draft, and loses nothing."""
    diff = predict_load(target_module, draft, choose_output_container(request))
    return diff is not None and diff.loads_whole


def predict_load(target_module: "TargetModule | None", draft: Draft, to: str) -> ModuleDiff | None:
    """Return what the module will do with the draft's result, written to container `to`."""
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
        save_plan(request, error.draft_plan_text)
        hint = (
            f"the plan so far is in {request.save_plan}, with the questions as comments: answer"
            f" them there, then run with --plan {shlex.quote(str(request.save_plan))}"
        )
    if error.accepts_renames:
        hint = f"--accept-renames accepts the unambiguous renames; {hint}"
    return error.add_hint(hint)


def save_plan(request: MigrationRequest, text: str) -> None:
    if request.save_plan is None:
        return
    write_file(request.save_plan, text.encode(), force=request.force)
