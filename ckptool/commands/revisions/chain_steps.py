"""CurrentRevision x revisions -> one Plan over the source, each revision's result checked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.revision_requests import RunPythonStep
from ckptool.commands.worker.worker import ModuleWorker
from ckptool.config import TRUST_RULE
from ckptool.errors import PlanError, RevisionError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.files.output_group import keep_until_moved, write_separately
from ckptool.formats.limits import Limits
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.key_operations import DropKeys, InjectTensor, StripPrefix
from ckptool.migration.plan.plan_file import Op, Plan, apply_plan, reverse_plan
from ckptool.migration.plan.tensor_operations import TieTensors
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.migration.request import MigrationRequest
from ckptool.migration.run import run_migration
from ckptool.migration.source_guard import SourceGuard
from ckptool.migration.write.inflate_storages import inflate_storages
from ckptool.model import Checkpoint, StateDict
from ckptool.phrases import MAX_NAMED, join_limited, quote_code
from ckptool.revisions.current_revision import create_chain_draft
from ckptool.revisions.recorded_state import (
    RecordedState,
    StateDifference,
    compare_states,
    record_draft,
)
from ckptool.revisions.revision import Revision, list_functions, list_named_steps
from ckptool.values.fingerprint_many import fingerprint_tensor

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule


class Direction(StrEnum):
    """Way through a chain: the name of the command, and of the function in a Python revision."""

    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"


class ChainStep(Struct, frozen=True):
    """One revision that a file goes through."""

    revision: Revision
    """The revision whose steps are taken, or are undone."""
    result: RecordedState
    """What is recorded of the state after it."""
    direction: Direction = Direction.UPGRADE

    @property
    def operations(self) -> tuple[Op, ...]:
        """The steps of its plan in this direction; sources are absolute paths."""
        return self._orient_plan(self.revision.plan)

    @property
    def named_operations(self) -> tuple[Op, ...]:
        """The same with sources that are relative to the folder of the chain."""
        return self._orient_plan(Plan(list_named_steps(self.revision)))

    def _orient_plan(self, plan: Plan) -> tuple[Op, ...]:
        return (plan if self.direction is Direction.UPGRADE else reverse_plan(plan)).ops


class ChainPlan(Struct, frozen=True):
    """The steps of several revisions as one plan."""

    plan: Plan
    recorded_plan: Plan
    """The same with names instead of temporary files, for the provenance record."""
    unchecked: str
    """Why results were not compared with what the revisions record, "" if they were."""


class ChainRun(Struct, frozen=True):
    """What the steps of a chain are applied to, and who runs those in Python."""

    checkpoint: Checkpoint
    state: StateDict
    prefix: str
    """What a wrapper has put before all keys, which is taken off first; "" for nothing."""
    ties: Mapping[str, str]
    """Tied key -> the key that it shares memory with, at the revision of the file."""
    difference: StateDifference
    """From what the revision of the file recorded: results may differ as much and no more."""
    worker: ModuleWorker
    limits: Limits
    run_python: bool
    target_module: "TargetModule | None" = None
    """Today's module, for values that only its constructor gives."""


def list_steps(chain_revisions: Sequence[Revision]) -> tuple[ChainStep, ...]:
    """Return the steps of an upgrade through these revisions."""
    return tuple(ChainStep(revision, revision.state) for revision in chain_revisions)


def list_reverse_steps(
    start: Revision, chain_revisions: Sequence[Revision]
) -> tuple[ChainStep, ...]:
    """Return the steps of a downgrade through these revisions, back to `start`.

    Raises:
        RevisionError: a revision cannot be undone; the message names it and its step.
    """
    if not chain_revisions:
        return ()
    states = [start.state, *(revision.state for revision in chain_revisions[:-1])]
    for revision in reversed(chain_revisions):
        reason = find_irreversible_step(revision)
        if reason:
            raise RevisionError(f"{revision.name} cannot be undone: {reason}")
    pairs = zip(reversed(chain_revisions), reversed(states), strict=True)
    return tuple(ChainStep(revision, state, Direction.DOWNGRADE) for revision, state in pairs)


def find_irreversible_step(revision: Revision) -> str:
    """Return why a revision cannot be undone, "" if it can."""
    if revision.python:
        has_downgrade = Direction.DOWNGRADE in list_functions(revision.python_path)
        return "" if has_downgrade else f"{revision.python} has no function downgrade(state)"
    try:
        reverse_plan(revision.plan)
    except PlanError as error:
        return str(error).removeprefix("the plan has no reverse: ")
    return ""


@contextmanager
def open_chain_plan(run: ChainRun, steps: Sequence[ChainStep]) -> Iterator[ChainPlan]:
    """Give the plan of all steps; values that Python revisions computed exist in the context.

    Raises:
        RevisionError: a step does not apply, or does not lead to the recorded state.
        ModuleError: the code of a Python revision raised.
        UsageError: it is not to be run.
    """
    computed_values = TemporaryDirectory(prefix="ckptool-chain-")
    with keep_until_moved(computed_values) as folder, AnonymousFile() as anonymous_file:
        checkpoint = inflate_storages(run.checkpoint, anonymous_file, run.limits)
        sources = ValueSources(
            run.target_module,
            None,
            anonymous_file,
            SourceGuard(),
            run.limits,
            follows_chain=True,
        )
        draft = create_chain_draft(checkpoint, run.state)
        operations = _prepare_draft(run, draft)
        draft = apply_plan(operations, draft, sources)
        recorded_operations = [*operations]
        for number, step in enumerate(steps):
            revision = step.revision
            try:
                if revision.python:
                    prefix = Path(folder, str(number))
                    new = _run_python_step(run, step, tuple(operations), draft, prefix)
                    recorded_operations += _name_sources(new, step)
                else:
                    new = step.operations
                    recorded_operations += step.named_operations
                draft = apply_plan(new, draft, sources)
            except PlanError as error:
                raise RevisionError(f"{revision.name} does not apply: {error}") from error
            operations += new
            _check_result(run, step, draft)
        yield ChainPlan(
            Plan(tuple(operations)), Plan(tuple(recorded_operations)), _describe_gap(run.difference)
        )


def _prepare_draft(run: ChainRun, draft: Draft) -> list[Op]:
    """Return the steps before those of the first revision: the keys become the recorded ones."""
    operations: list[Op] = []
    if run.prefix:
        operations.append(StripPrefix(prefix=run.prefix, times=1, why="a wrapper's prefix"))
    keys = {key.removeprefix(run.prefix) for key in draft.items}
    operations += [
        TieTensors(key=key, to=kept_key, why="tied, and stored under one name")
        for key, kept_key in run.ties.items()
        if key not in keys and kept_key in keys
    ]
    return operations


def _check_result(run: ChainRun, step: ChainStep, draft: Draft) -> None:
    """Compare the state after a revision with what is recorded, as far as the source was like it.

    Raises:
        RevisionError: it differs.
    """
    difference = compare_states(step.result, record_draft(draft))
    is_same = difference.is_empty
    if run.difference.has_same_keys and run.difference.reshaped:
        is_same = difference.has_same_keys
    elif run.difference.changed:
        is_same = difference.has_same_keys and not difference.reshaped
    if not is_same:
        is_upgrade = step.direction is Direction.UPGRADE
        verb = "its steps do not lead" if is_upgrade else "undoing it does not lead"
        raise RevisionError(
            f"{step.revision.name}: {verb} to the state that is recorded: {difference.text}"
        )


def _describe_gap(difference: StateDifference) -> str:
    names = join_limited(difference.reshaped or difference.changed, MAX_NAMED, quote_code)
    if difference.reshaped:
        return f"shapes and dtypes of the results: those of the file are not as recorded: {names}"
    return f"dtypes of the results: those of the file are not as recorded: {names}" if names else ""


def _run_python_step(
    run: ChainRun, step: ChainStep, operations: tuple[Op, ...], draft: Draft, prefix: Path
) -> tuple[Op, ...]:
    """Return the steps that put what the function of a revision computes into the state.

    Args:
        run: the file.
        step: the revision.
        operations: the steps before it.
        draft: the state after them.
        prefix: of the names of temporary files.

    Raises:
        PlanError: the function changed a value that is not a tensor, or returned one.
    """
    revision = step.revision
    require_python(revision, step.direction, run_python=run.run_python)
    before, after = (prefix.with_name(f"{prefix.name}-{end}.pth") for end in ("before", "after"))
    with write_separately():  # into a temporary folder
        run_migration(
            MigrationRequest(
                source=run.checkpoint.path,
                target=before,
                at=run.state.at,
                plan=Plan(operations),
                drop_extra=True,
                record_provenance=False,
                follows_chain=True,
                limits=run.limits,
            )
        )
    target = ModuleTarget(str(revision.python_path))
    run.worker.ask(RunPythonStep(target, revision.python_path, str(step.direction), before, after))
    return _build_value_steps(draft, before, after, run.limits)


def require_python(revision: Revision, direction: Direction, *, run_python: bool) -> None:
    """Check that the function of a Python revision may be run, and announce it.

    Raises:
        UsageError: it may not.
        RevisionError: its file has no function of that name.
    """
    path = revision.python_path
    if not run_python:
        raise UsageError(f"{path}: is code of the project, and --no-config runs none")
    if direction not in list_functions(path):
        raise RevisionError(f"{path}: has no function {direction}(state)")
    announce = TRUST_RULE.get().announce_revision
    if announce is not None:
        announce(path)


def _build_value_steps(
    draft: Draft, before_path: Path, after_path: Path, limits: Limits
) -> tuple[Op, ...]:
    """Return the steps that give a draft the tensors of the file that a function wrote."""
    before, after = (_read_only_state(path, limits) for path in (before_path, after_path))
    if before.non_tensors != after.non_tensors:
        raise PlanError("its function may change tensors only: another value differs")
    changed = [
        key
        for key, tensor in after.tensors.items()
        if key not in before.tensors
        or tensor.shape != before.tensors[key].shape
        or tensor.dtype != before.tensors[key].dtype
        or fingerprint_tensor(tensor) != fingerprint_tensor(before.tensors[key])
    ]
    removed = [key for key in draft.items if key not in after.tensors or key in changed]
    return (
        *(DropKeys(key=key) for key in removed),
        *(InjectTensor(key=key, source=f"file:{after_path}#{key}") for key in changed),
    )


def _read_only_state(path: Path, limits: Limits) -> StateDict:
    states = open_checkpoint(path, limits).states
    return next((state for state in states if not state.at), StateDict("", {}))


def _name_sources(operations: tuple[Op, ...], step: ChainStep) -> tuple[Op, ...]:
    """Return the steps of a Python revision as they are recorded: without temporary files."""
    source = f"python:{step.revision.python}#{step.direction}"
    return tuple(
        replace(op, source=source) if isinstance(op, InjectTensor) else op for op in operations
    )
