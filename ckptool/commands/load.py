"""Checkpoint -> its tensors as a lazy mapping, or in a live module with a LoadReport."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckptool.commands.migrating.plan_refusal import refuse_errors
from ckptool.commands.sources.checkpoint_paths import (
    PathLike,
    name_kind,
    open_checkpoint_or_stdin,
    require_path,
)
from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.sources.module_choice import ModuleOptions, find_target
from ckptool.commands.worker.migration_requests import load_target_module
from ckptool.commands.worker.worker import get_worker
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.states import find_loaded_state, list_model_states, require_state_or_part
from ckptool.errors import LoadError, NoStateError, PlanError, RevisionError, UsageError
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location, parse_location
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import Checkpoint, StateDict
from ckptool.phrases import MAX_NAMED, join_limited, quote_code
from ckptool.policy import Policy, judge
from ckptool.reports.load import (
    LoadReport,
    build_load_report,
    build_refusal_report,
    format_short,
)
from ckptool.rules import Finding, run_rules
from ckptool.values.progress import start_step

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from ckptool.commands.revisions.chain_load import ChainLoad
    from ckptool.migration.load.accepted_answers import AcceptedAnswers
    from ckptool.migration.load.checkpoint_tensors import CheckpointTensors
    from ckptool.migration.load.planned_load import PlannedLoad
    from ckptool.migration.load.state_dict import Placement
    from ckptool.migration.plan.anonymous_file import AnonymousFile
    from ckptool.migration.plan.plan_file import Plan


@pause_gc()  # until what describes file and module is released: a search would go through it all
def load(  # noqa: PLR0913
    module: "nn.Module",
    path: PathLike,
    *,
    at: str | None = None,
    strict: bool = True,
    assign: bool = False,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    plan: "str | Path | Plan | None" = None,
    accept: Sequence[str] = (),
    revisions: str | Path | Literal[False] | None = None,
    kwargs: Mapping[str, object] | None = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    limits: Limits = DEFAULT_LIMITS,
) -> LoadReport:
    """Load a checkpoint into a live module: `module.load_state_dict(torch.load(path))`, and more.

    Nothing in the file is executed. A local file is mapped into memory, so that there is no second
    copy of it. What a migration would do with proof is done before (a wrapper's prefix, ties, a
    buffer that the constructor recreates); then the module's own `load_state_dict` is called. If
    this raises, the module is as it was; where code of the module's own takes part, its tensors are
    copied first for that.

    Args:
        module: a live module.
        path: the checkpoint: a file, a folder of shards, a distributed checkpoint, or a URL.
        at: dotted place of the state in the file ("model"); None takes the best match.
        strict: whether missing and unexpected keys are errors. With False, questions stay open and
            the report has the keys; a shape mismatch is an error all the same.
        assign: put the tensors of the file in the place of the module's, instead of copying their
            values, as `load_state_dict(assign=True)`; for modules on meta.
        device: with `assign`, the device of the tensors; None for that of the module's own, or the
            CPU if these are on meta. Without it, the module's, or an error.
        dtype: with `assign`, the dtype of floating-point tensors; None for the file's. Without it,
            the module's, or an error.
        plan: a plan, or the path of a plan file; None derives the plan.
        accept: answers to open questions, as a LoadError names them: "drop KEY", "rename OLD=NEW",
            "inject KEY=SOURCE", "renames" for all that are unambiguous, or the code of a rule that
            refuses the load.
        revisions: folder of a chain of migrations: a file of an older revision is upgraded in
            memory. None takes the chain of the current folder's project, if it has one and its
            head has the keys of the module; False takes none. Revisions that are Python functions
            are run, as the module's own code is.
        kwargs: constructor arguments of the module, where a buffer that is not in the file is to
            be recreated.
        fresh: function that builds a module like this one, if `kwargs` do not determine it.
        limits: bounds on the memory and time that reading the file may take.

    Raises:
        LoadError: it is not loaded; the text is the short form of the report in `report`.
        ReadError: the file cannot be read.
        ModuleError: the module cannot be examined.
        UsageError: an argument is invalid.
    """
    _require_module(module)
    from ckptool.migration.load.accepted_answers import parse_answers
    from ckptool.migration.load.state_dict import (
        parse_placement,
        require_local_tensors,
        require_target,
    )
    from ckptool.migration.plan.anonymous_file import AnonymousFile
    from ckptool.migration.write.inflate_storages import inflate_storages
    from ckptool.modules.live.registered import list_registered

    answers = parse_answers(accept)
    placement = parse_placement(device, dtype)
    registered_tensors = list_registered(module)
    require_target(registered_tensors, placement, assign=assign)
    source_guard = _guard_source(path)
    checkpoint = open_checkpoint_or_stdin(path, limits)
    require_local_tensors(module, registered_tensors, checkpoint)
    with AnonymousFile() as anonymous_file:
        job = _LoadJob(
            module=module,
            checkpoint=inflate_storages(checkpoint, anonymous_file, limits),
            options=ModuleOptions(module, kwargs, at, loader="torch", fresh=fresh),
            at=at,
            strict=strict,
            answers=answers,
            source_guard=source_guard,
            anonymous_file=anonymous_file,
            limits=limits,
            findings=_DiffFindings(checkpoint.path),
        )
        try:
            with job.open_chain(revisions if plan is None else False) as chain_load:
                planned = job.plan_load(chain_load.plan if plan is None else plan, chain_load.at)
                return job.load_planned(planned, placement, chain_load.notes, assign=assign)
        except (PlanError, RevisionError) as error:
            raise _build_error(checkpoint, job.module_name, error) from error


def _require_module(module: object) -> None:
    """Reject what is no live module.

    Raises:
        UsageError: it is a class, a name, or another object.
    """
    if isinstance(module, type):
        raise UsageError(f"{module.__qualname__} is a class: give an instance of it")
    if not (hasattr(module, "named_modules") and hasattr(module, "load_state_dict")):
        raise UsageError(f"load() takes a live module, not {name_kind(module)}")


class _DiffFindings:
    """Findings of comparisons with one file; the last comparison is judged once."""

    def __init__(self, path: Location) -> None:
        self._path = path
        self._last: tuple[ModuleDiff, tuple[Finding, ...]] | None = None

    def find(self, diff: ModuleDiff) -> tuple[Finding, ...]:
        """Return the findings on `diff`, those of before if it is the same object."""
        if self._last is None or self._last[0] is not diff:
            self._last = diff, run_rules([diff], self._path)
        return self._last[1]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _LoadJob:
    """One load: the file and the module, and what was asked for."""

    module: "nn.Module"
    checkpoint: Checkpoint
    options: ModuleOptions
    at: str | None
    strict: bool
    answers: "AcceptedAnswers"
    source_guard: SourceGuard
    anonymous_file: "AnonymousFile"
    limits: Limits
    findings: "_DiffFindings"

    @property
    def module_name(self) -> str:
        return type(self.module).__qualname__

    def open_chain(
        self, revisions: "str | Path | Literal[False] | None"
    ) -> "AbstractContextManager[ChainLoad]":
        """Return a context with the steps of the project's chain of migrations for the file.

        Raises:
            RevisionError: the file is newer than the code, or no way leads from it to the head.
        """
        from ckptool.commands.revisions.chain_load import open_chain_load

        return open_chain_load(self.module, self.checkpoint, self.at, revisions, self.limits)

    def plan_load(
        self, plan: "str | Path | Plan | None", chain_at: str | None = None
    ) -> "PlannedLoad":
        """Return what `load_state_dict` gets.

        Args:
            plan: a plan, or the path of a plan file; None derives it.
            chain_at: place of the state that a chain's steps are for; None without a chain.

        Raises:
            PlanError: the file is not loaded.
        """
        from ckptool.migration.load.planned_load import LoadPlanner, require_loadable
        from ckptool.migration.plan.plan_file import read_plan_file
        from ckptool.migration.request import MigrationRequest

        if self.checkpoint.damage:
            raise PlanError(self.checkpoint.damage)
        location, is_file = self.checkpoint.path, isinstance(plan, str | Path)
        target = find_target(location, self.options, None)
        assert target is not None
        request = MigrationRequest(
            source=location,
            target=None,
            at=self.at if chain_at is None else chain_at,
            plan=read_plan_file(Path(plan)) if isinstance(plan, str | Path) else plan,
            plan_name=str(plan) if is_file else "",
            follows_chain=chain_at is not None,
            choices=self.answers.choices,
            drop_extra=True,
            dry_run=True,
            limits=self.limits,
            check_plan=partial(
                refuse_errors,
                location,
                self._policy,
                {*self.answers.choices.inject, *self.answers.choices.drop},
                self.findings.find,
            ),
        )
        planner = LoadPlanner(
            module=self.module,
            spec=target.build_spec(FileArguments()),
            checkpoint=self.checkpoint,
            request=request,
            strict=self.strict,
            describe_target=partial(load_target_module, get_worker(), target, self.checkpoint),
            anonymous_file=self.anonymous_file,
            source_guard=self.source_guard,
        )
        planned = planner.plan_load()
        require_loadable(planned.diff, strict=self.strict)
        return planned

    def load_planned(
        self,
        planned: "PlannedLoad",
        placement: "Placement",
        notes: tuple[str, ...],
        *,
        assign: bool,
    ) -> LoadReport:
        """Give the tensors to the module, and return the report.

        Raises:
            PlanError: `load_state_dict` raised; the module is put back.
        """
        from ckptool.migration.load.accepted_answers import format_question
        from ckptool.migration.load.module_load import load_into_module
        from ckptool.migration.load.planned_load import describe_state_choice
        from ckptool.migration.load.state_dict import build_state_dict, place_tensors
        from ckptool.migration.load.tensor_reader import TensorReader
        from ckptool.verification.loading.loading_code import loads_by_own_code

        start_step(f"loading {self.checkpoint.path.name}")
        only_copies = not assign and not loads_by_own_code(self.module)
        reader = TensorReader(self.checkpoint, planned.draft.state.at, None)
        try:
            state_dict = build_state_dict(planned.draft, reader, keeps_chunks=only_copies)
            if assign:
                place_tensors(state_dict, self.module, placement)
            self._require_unchanged()
            keys = load_into_module(
                self.module,
                state_dict,
                reader.files,
                reader.chunked,
                strict=self.strict,
                assign=assign,
            )
        finally:
            reader.close()
        self._require_unchanged()
        differs = bool(keys.missing or keys.unexpected)
        findings = self.findings.find(planned.diff)
        return build_load_report(
            planned,
            self.module_name,
            keys,
            judge(findings, self._policy, differs=differs),
            (*notes, *describe_state_choice(planned, self.at)),
            tuple(map(format_question, planned.questions)),
        )

    def _require_unchanged(self) -> None:
        if changed := self.source_guard.list_changed():
            raise PlanError(f"{changed[0]} was changed while it was read: load it again")

    @property
    def _policy(self) -> Policy:
        return Policy(ignore=self.answers.ignored_codes)


def _build_error(
    checkpoint: Checkpoint, module_name: str, error: PlanError | RevisionError
) -> LoadError:
    """Return the error whose text is the short form of the report that it has."""
    from ckptool.migration.load.accepted_answers import format_in_python, format_question
    from ckptool.migration.plan.open_decisions import UndecidedError

    questions: tuple[str, ...] = ()
    reason = str(error).removeprefix(f"{checkpoint.path}: ").removeprefix("not migrated: ")
    if isinstance(error, UndecidedError):
        questions = tuple(format_question(decision.question) for decision in error.decisions)
        reason = ""
    report = build_refusal_report(checkpoint, module_name, format_in_python(reason), questions)
    return LoadError(format_short(report), report)


def tensors(
    path: PathLike, *, at: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> "CheckpointTensors":
    """Return the tensors of a checkpoint as a read-only mapping; no tensor is read before its use.

    Nothing in the file is executed. A local file is mapped into memory, so that a tensor takes no
    memory of its own; of a remote file, a tensor is read when it is asked for.

    Args:
        path: a file, a folder of shards, a distributed checkpoint, or a URL.
        at: dotted place of the state in the file ("model", "optimizer"); None takes the only model,
            or the one in the usual place.
        limits: bounds on the memory and time that reading the file may take.

    Raises:
        ReadError: it cannot be read.
        NoStateError: it has no tensors there, or several states and no usual place.
    """
    from ckptool.migration.load.checkpoint_tensors import CheckpointTensors

    source_guard = _guard_source(path)
    checkpoint = open_checkpoint_or_stdin(path, limits)
    state = _find_only_state(checkpoint) if at is None else require_state_or_part(checkpoint, at)
    if not state.tensors:
        place = "" if at is None else f" at `{at}`"
        raise NoStateError(f"{checkpoint.path}: there are no tensors{place}")
    return CheckpointTensors(checkpoint, state, source_guard, limits)


def _guard_source(path: PathLike) -> SourceGuard:
    """Return a guard that knows the files at `path` as they are now; it knows no remote file.

    Raises:
        ReadError: a folder cannot be listed.
        UsageError: `path` is not a path.
    """
    source_guard = SourceGuard()
    location = parse_location(require_path(path))
    if isinstance(location, Path):
        is_index = location.name.endswith(".json") or location.name == ".metadata"
        source_guard.add_path(location.parent if is_index else location)
    return source_guard


def _find_only_state(checkpoint: Checkpoint) -> StateDict:
    """Return the model's state: the only one, or that in the usual place.

    Raises:
        NoStateError: there are several, and none is in the usual place.
    """
    states = [state for state in list_model_states(checkpoint) if state.tensors]
    usual_state = find_loaded_state(checkpoint)
    if len(states) > 1 and usual_state is None:
        places = join_limited([state.at or "." for state in states], MAX_NAMED, quote_code)
        raise NoStateError(f"{checkpoint.path}: has states at {places}: name one with at=")
    return usual_state or (states[0] if states else StateDict("", {}))
