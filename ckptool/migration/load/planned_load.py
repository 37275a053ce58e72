"""Checkpoint x live module -> PlannedLoad: what a migration would make of the file, in memory."""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace
from torch import nn

from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.module_diff import ModuleDiff, strict_load_obstacles
from ckptool.compare.states import equally_good_states
from ckptool.errors import PlanError
from ckptool.migration.check.local_module import LocalModule
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.container_limits import (
    TORCH,
    reject_absent_values,
    reject_packed_weights,
)
from ckptool.migration.plan.draft import Draft, create_draft
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.plan.suggest import PlanChoices, SuggestedPlan
from ckptool.migration.plan.target_module import TargetModule
from ckptool.migration.plan.tensor_operations import TieTensors
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.migration.planning import (
    PlannedResult,
    apply_suggested,
    check_outcome,
    choose_plan,
    select_state,
)
from ckptool.migration.request import MigrationRequest
from ckptool.migration.source_guard import SourceGuard
from ckptool.migration.write.tied_items import restore_ties
from ckptool.model import Checkpoint, StateDict
from ckptool.modules import ModuleSpec
from ckptool.modules.live.saved_state import describe_saved_state
from ckptool.modules.world.user_world import user_world
from ckptool.phrases import MAX_NAMED, join_limited, quote_code
from ckptool.verification.loading.loading_code import loads_by_own_code


class PlannedLoad(Struct, frozen=True):
    """The state_dict that a load gives to the module, and what the module will do with it."""

    plan: Plan
    draft: Draft
    diff: ModuleDiff
    questions: tuple[str, ...] = ()
    """Open questions that strict=False leaves open."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadPlanner:
    """Plans the load of one checkpoint into one live module."""

    module: nn.Module
    spec: ModuleSpec
    checkpoint: Checkpoint
    request: MigrationRequest
    strict: bool
    describe_target: Callable[[], TargetModule]
    """Describes the module in full, which takes as long as a `diff`."""
    anonymous_file: AnonymousFile
    source_guard: SourceGuard

    def plan_load(self) -> PlannedLoad:
        """Return the plan: none where keys and shapes match and torch only copies.

        Raises:
            UndecidedError: questions are open, and `strict`.
            PlanError: the file cannot be loaded, or the request's judge refuses the result.
        """
        if self._is_bare and not loads_by_own_code(self.module):
            with user_world():  # once for all questions to the module
                planned = self._plan_copy()
            if planned is not None:
                return planned
        return self._plan_migration()

    @property
    def _is_bare(self) -> bool:
        """Whether nothing but the file and the module says what is loaded."""
        return self.request.plan is None and self.request.choices == PlanChoices()

    def _plan_copy(self) -> PlannedLoad | None:
        """Return the plan of a load that copies by name; None where more has to be asked."""
        info = describe_saved_state(self.module, type(self.module).__qualname__)
        diff = build_module_diff(self.checkpoint, info, self.request.at)
        if not _matches_by_name(diff):
            return None
        reject_packed_weights(self.checkpoint)
        reject_absent_values(self.checkpoint.path, diff.state, info)
        draft = self._create_draft(diff.state)
        ties = [
            TieTensors(key=key, to=kept_key, why="tied in the module (CK501)")
            for key, kept_key in diff.tied_missing_keys.items()
            if key not in draft.items
        ]
        source = LocalModule(self.module, info.target, self.spec, "torch")
        target = TargetModule(info, source)
        if ties or draft.items.keys() != diff.state.tensors.keys():
            planned = self._apply(SuggestedPlan(Plan(tuple(ties))), draft, target)
            return planned if planned.diff.is_strict else None
        answer = source.ask_loader(diff)
        if answer.unchecked or answer.outcome:
            return None
        result = PlannedResult(Plan(), draft, draft, diff, already_applied=False)
        check_outcome(self.request, result, target)
        return PlannedLoad(Plan(), draft, diff)

    def _plan_migration(self) -> PlannedLoad:
        target = self.describe_target()
        draft = self._create_draft(
            select_state(self.checkpoint, target.module_info, self.request, TORCH)
        )
        diff = target.predict_load(draft, state_only=False, keeps_versions=True)
        if self._is_bare and diff.loads_whole:
            # The module's own code upgrades the state, with what the live module has.
            return self._apply(SuggestedPlan(Plan()), draft, target)
        try:
            suggested = choose_plan(self.request, draft, target, self._open_sources(target))
        except UndecidedError as error:
            if self.strict:
                raise
            questions = tuple(decision.question for decision in error.decisions)
            return replace(
                self._apply(SuggestedPlan(error.plan), draft, target), questions=questions
            )
        return self._apply(suggested, draft, target)

    def _create_draft(self, state: StateDict) -> Draft:
        return replace(restore_ties(create_draft(self.checkpoint, state)), is_extracted=True)

    def _open_sources(self, target: TargetModule) -> ValueSources:
        return ValueSources(
            target,
            None,
            self.anonymous_file,
            self.source_guard,
            self.request.limits,
            follows_chain=self.request.follows_chain,
        )

    def _apply(self, suggested: SuggestedPlan, draft: Draft, target: TargetModule) -> PlannedLoad:
        sources = self._open_sources(target)
        planned = apply_suggested(self.request, TORCH, suggested, draft, target, sources)
        check_outcome(self.request, planned, target)
        assert planned.diff is not None
        plan = Plan() if planned.already_applied else planned.plan
        return PlannedLoad(plan, planned.result, planned.diff)


def _matches_by_name(diff: ModuleDiff) -> bool:
    """Whether the keys and shapes are the module's, names that are left out as tied aside."""
    is_whole_state = any(state.at == diff.state.at for state in diff.checkpoint.states)
    return is_whole_state and not (
        {*diff.missing_keys} - {*diff.tied_missing_keys}
        or diff.unexpected_keys
        or diff.shape_mismatches
        or diff.mistyped_keys
        or diff.reparametrizations
        or diff.quantization
        or diff.better_state
    )


def require_loadable(diff: ModuleDiff, *, strict: bool) -> None:
    """Raise if keys and shapes say that `load_state_dict` would raise.

    Raises:
        PlanError: it would.
    """
    if strict and not diff.is_strict:
        raise PlanError(strict_load_obstacles(diff) or "load_state_dict raises")
    blocking = [*(change.key for change in diff.shape_mismatches), *diff.mistyped_keys]
    outcome = diff.load_outcome
    is_tried = outcome is not None and outcome.missing_keys is not None
    if blocking and not (diff.is_strict or is_tried):
        names = join_limited(blocking, MAX_NAMED, quote_code)
        raise PlanError(f"a shape mismatch is an error with strict=False too: {names}")


def describe_state_choice(planned: PlannedLoad, at: str | None) -> tuple[str, ...]:
    """Return notes on the state that was taken, and on what of the file is not loaded."""
    state, checkpoint = planned.draft.state, planned.draft.checkpoint
    notes: list[str] = []
    if at is None and (state.at or len(checkpoint.states) > 1):
        others = equally_good_states(checkpoint, planned.diff.module, state)
        names = join_limited(others, MAX_NAMED, quote_code)
        more = f"; {names} matches as well: at= takes it instead" if others else ""
        notes.append(f"loaded from `{state.at or '.'}`, the best match{more}")
    unsaved = [key for key in state.unsaved_tensors if key not in planned.draft.items]
    if unsaved:
        names = join_limited(unsaved, MAX_NAMED, quote_code)
        notes.append(f"in the pickled module but not in its state_dict, and not loaded: {names}")
    return tuple(notes)
