"""What changed since the last revision -> a new revision in the chain, and RevisionReport."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.revisions.chain_steps import find_irreversible_step
from ckptool.commands.revisions.drafting import (
    DraftedPlan,
    check_drafted_plan,
    draft_plan,
    format_values,
)
from ckptool.commands.revisions.fixtures import (
    NewFixture,
    OutputRecorder,
    build_fixture,
    find_fixture,
    list_fixture_files,
    take_fixture,
)
from ckptool.commands.revisions.keep_fixture import keep_fixture
from ckptool.commands.revisions.merge_heads import merge_heads
from ckptool.commands.revisions.project_chain import ProjectChain, build_options, find_project_chain
from ckptool.commands.revisions.revision_files import write_chain_files
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.migration_requests import WorkerModule
from ckptool.commands.worker.requests import DescribeModule
from ckptool.commands.worker.worker import ModuleWorker, get_worker
from ckptool.compare.contracts import contract_lock
from ckptool.compare.contracts.contract import build_module_contract
from ckptool.config import ProjectConfig
from ckptool.errors import RevisionError, UsageError
from ckptool.formats.files.atomic import check_target
from ckptool.formats.files.output_group import write_file, write_separately
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.migration.plan.plan_file import Plan, read_plan_file
from ckptool.migration.plan.suggest import PlanChoices
from ckptool.migration.plan.target_module import TargetModule
from ckptool.reports.revisions.revision import (
    RevisionOutcome,
    RevisionReport,
    build_revision_report,
)
from ckptool.revisions.chain import Chain, order_revisions
from ckptool.revisions.recorded_state import RecordedState, compare_states, record_contract
from ckptool.revisions.revision import VALUES_FOLDER, Revision, format_revision, name_revision

if TYPE_CHECKING:
    from torch import nn

LOCK_NAME: Final = "ckpt.lock.json"
_MAX_SLUG_CHARS: Final = 40
_TEMPLATE: Final = '''"""{message}

Written by `ckptool revision`; `ckptool upgrade` runs it. Import nothing of the project here: its
code goes on, and this file has to stay as it is.
"""

import torch


def upgrade(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state_dict of this revision, made of that of the revision before it."""
    raise NotImplementedError


# With a function downgrade(state), `ckptool downgrade` can undo it.
'''


def revision(  # noqa: PLR0913
    message: str | None = None,
    *,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    loader: str | None = None,
    chain: str | Path | None = None,
    plan: str | Path | Plan | None = None,
    save_plan: str | Path | None = None,
    python: bool = False,
    fixture: str | Path | None = None,
    inputs: object = None,
    renames: Mapping[str, str] | None = None,
    inject: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    accept_renames: bool = False,
    merge: bool = False,
    run_python: bool = True,
    dry_run: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
) -> RevisionReport:
    """Draft a migration from what changed since the last revision, or since the lock.

    The first one of a project records the state of today's module. If there is a lock of an earlier
    state, it begins with that, and a second revision leads from there to today's module.

    Args:
        message: what changed, in a few words; it names the file.
        module: today's module; None takes the configuration's.
        kwargs: constructor arguments.
        loader: framework whose loader is used; None selects it by the folder.
        chain: folder of the revisions; None takes `ckpt_migrations` of the configuration.
        plan: the steps, or the path of a plan file; None derives them.
        save_plan: file for the steps so far and the questions, where questions are open.
        python: write a Python file with a function `upgrade(state)` to fill in, instead of steps.
        fixture: a small checkpoint, kept as the fixture of the revision that it is at; None makes
            one with the constructor's values, if the state is small. Without `message` no revision
            is drafted.
        inputs: arguments of forward, as for `verify`: outputs are recorded with the fixture.
        renames: key or pattern before -> key or pattern now, as for `migrate`.
        inject: key, or pattern of new keys -> source of its value, as for `migrate`.
        drop: keys to leave out.
        accept_renames: take renames that nothing proves where nothing else fits as well.
        merge: put one of two heads after the other instead of drafting a revision.
        run_python: whether `merge` may run revisions that are Python functions.
        dry_run: write nothing.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        RevisionError: nothing changed, the chain is inconsistent, or the steps lead elsewhere.
        UndecidedError: keys and shapes do not say what changed; the message asks.
        ModuleError: the module cannot be built.
        WriteError: a file cannot be written; then none is.
        UsageError: the options exclude each other.
    """
    if save_plan is not None:
        check_target(Path(save_plan), (), force=False, folder=False)
    project = find_project_chain(build_options(config, module, kwargs, loader, chain))
    if merge:
        step_options = {"-m": message is not None, "--plan": plan is not None, "--python": python}
        reject_unused_options(
            step_options, "is for a new revision, and --merge orders those there are"
        )
        return merge_heads(project.read(), run_python=run_python, dry_run=dry_run)
    if message is None and fixture is not None:
        target = project.require_target("a fixture")
        return keep_fixture(project.read(), target, Path(fixture), inputs, limits, dry_run=dry_run)
    if not message or not message.strip():
        raise UsageError('a revision needs a message: ckptool revision -m "what changed"')
    reject_unused_options(
        {"--plan": python and plan is not None}, "has the steps, and --python drafts a function"
    )
    job = _DraftJob(
        project,
        project.require_target("a revision"),
        message.strip(),
        PlanChoices(inject or {}, tuple(drop), renames or {}, accept_renames),
        read_plan_file(Path(plan)) if isinstance(plan, str | Path) else plan,
        python,
        None if save_plan is None else Path(save_plan),
        get_worker(),
    )
    outcome = job.draft()
    fixture_path = None if fixture is None else Path(fixture)
    recorder = OutputRecorder(job.target, inputs, job.worker)
    outcome = _add_fixture(project, outcome, fixture_path, recorder, limits)
    if not dry_run:
        parent = outcome.revisions[0].parent
        write_chain_files(project.folder, [parent] if parent else [], outcome.files)
    return build_revision_report(replace(outcome, is_written=not dry_run))


class _DraftJob(Struct, frozen=True):
    """What a new revision is made of."""

    project: ProjectChain
    target: ModuleTarget
    message: str
    choices: PlanChoices
    plan: Plan | None
    python: bool
    save_plan: Path | None
    worker: ModuleWorker

    def draft(self) -> RevisionOutcome:
        """Return the new revisions with their files.

        Raises:
            RevisionError, UndecidedError: as for `revision`.
        """
        target_module = self._describe_module()
        state = record_contract(build_module_contract(target_module.module_info))
        module = target_module.module_info.target
        folder = self.project.folder
        has_chain = folder.is_dir() and any(folder.glob("*.toml"))
        if has_chain:
            return self._follow(self.project.read(), state, target_module)
        locked = self._read_lock(state)
        project_id = _name_project(module, locked or state)
        message = f"as locked in {LOCK_NAME}" if locked else self.message
        first = self._build_revision(None, message, locked or state, Plan(), project_id, module)
        if locked is None:
            self._reject_steps()
            return RevisionOutcome((first,), {first.path: format_revision(first).encode()})
        chain = order_revisions(folder, [first])
        outcome = self._follow(chain, state, target_module)
        files = {first.path: format_revision(first).encode(), **outcome.files}
        return replace(outcome, revisions=(first, *outcome.revisions), files=files)

    def _describe_module(self) -> TargetModule:
        answer = self.worker.ask(DescribeModule(self.target))
        source = WorkerModule(self.worker, self.target, self.target.file_arguments)
        return TargetModule(answer.module_info, source)

    def _reject_steps(self) -> None:
        """Refuse steps of a first revision: there is nothing that they could lead from."""
        step_options = {"--plan": self.plan is not None, "--python": self.python}
        reason = "is for what changed, and the first revision records what there is"
        reject_unused_options(step_options, reason)

    def _read_lock(self, state: RecordedState) -> RecordedState | None:
        """Return the state of the lock of the project; None without one, or if it is today's."""
        path = self.project.folder.parent / LOCK_NAME
        if not contract_lock.is_lock(path):
            return None
        locked = record_contract(contract_lock.read_lock(path))
        return None if compare_states(locked, state).is_empty else locked

    def _follow(
        self, chain: Chain, state: RecordedState, target_module: TargetModule
    ) -> RevisionOutcome:
        """Return the revision after the head of a chain."""
        parent = chain.head
        difference = compare_states(parent.state, state)
        if difference.is_empty and self.plan is None and not self.python:
            raise RevisionError(
                f"nothing changed since {parent.name}: keys, shapes and dtypes are those that it "
                "records; for a change of values alone, --plan FILE has the steps, or --python "
                "drafts a function"
            )
        module = target_module.module_info.target
        path = _name_file(chain.folder, len(chain.revisions) + 1, self.message)
        files: dict[Path, bytes] = {}
        drafted = DraftedPlan(Plan())
        if self.python:
            text = _TEMPLATE.format(message=self.message.replace("\\", "\\\\").replace('"', "'"))
            files[path.with_suffix(".py")] = text.encode()
        elif self.plan is not None:
            drafted = check_drafted_plan(path, parent.state, state, self.plan, target_module)
        else:
            drafted = self._draft_plan(path, parent, state, target_module)
        if drafted.values:
            values_path = path.parent / VALUES_FOLDER / f"{path.stem}.safetensors"
            files[values_path] = format_values(drafted.values)
        new = self._build_revision(
            parent, self.message, state, drafted.plan, parent.project, module, path
        )
        reason = "" if self.python else find_irreversible_step(new)
        return RevisionOutcome(
            (new,), {path: format_revision(new).encode(), **files}, difference, reason
        )

    def _draft_plan(
        self, path: Path, parent: Revision, state: RecordedState, target_module: TargetModule
    ) -> DraftedPlan:
        """Derive the steps.

        Raises:
            UndecidedError: questions are open; --save-plan has the steps so far.
        """
        try:
            return draft_plan(path, parent.state, state, target_module, self.choices, parent.name)
        except UndecidedError as error:
            module = target_module.module_info.target
            is_other = not parent.state.forms.keys() & state.forms.keys()
            if is_other and parent.module != module:
                raise error.add_hint(
                    f"the chain is of {parent.module}, and {module} has none of its keys: --chain "
                    "FOLDER begins a chain of its own"
                ) from error
            if self.save_plan is None:
                raise
            with write_separately():  # the error discards what the command gathers
                write_file(self.save_plan, error.draft_plan_text.encode(), force=False)
            hint = (
                f"the steps so far are in {self.save_plan}: answer there, then take it with --plan"
            )
            raise error.add_hint(hint) from error

    def _build_revision(
        self,
        parent: Revision | None,
        message: str,
        state: RecordedState,
        plan: Plan,
        project: str,
        module: str,
        path: Path | None = None,
    ) -> Revision:
        path = path or _name_file(self.project.folder, 1, message)
        parent_id = parent.revision if parent else ""
        revision = Revision(
            path=path,
            revision="",
            parent=parent_id,
            message=message,
            created=_read_date(),
            project=project,
            module=module,
            state=state,
            plan=plan,
            python=path.with_suffix(".py").name if parent and self.python else "",
        )
        return replace(revision, revision=name_revision(revision))


def _add_fixture(
    project: ProjectChain,
    outcome: RevisionOutcome,
    path: Path | None,
    recorder: OutputRecorder,
    limits: Limits,
) -> RevisionOutcome:
    """Return the outcome with the files of a fixture, or with the reason why there is none."""
    new = outcome.revisions[-1]
    fixtures: list[NewFixture] = []
    notes: list[str] = []
    if path is not None:
        folder = project.folder
        has_chain = folder.is_dir() and any(folder.glob("*.toml"))
        old = project.read().revisions if has_chain else ()
        chain = order_revisions(folder, [*old, *outcome.revisions])
        fixtures.append(take_fixture(path, chain, new, recorder, limits))
    kept_fixture = find_fixture(new)
    if kept_fixture is not None:
        notes.append(f"{kept_fixture.name} is kept as the fixture of {new.name}")
    elif all(fixture.revision != new for fixture in fixtures):
        built = build_fixture(new, recorder)
        if isinstance(built, str):
            notes.append(built)
        else:
            fixtures.append(built)
    files = dict(outcome.files)
    for fixture in fixtures:
        files |= list_fixture_files(fixture)
        notes.append(fixture.origin)
    return replace(outcome, files=files, notes=(*outcome.notes, *notes))


def _name_file(folder: Path, number: int, message: str) -> Path:
    """Return the file of a revision: "0003_mask_is_a_buffer.toml"."""
    words = re.sub(r"[^0-9a-z]+", "_", message.lower()).strip("_")
    slug = words[:_MAX_SLUG_CHARS].rpartition("_")[0] if len(words) > _MAX_SLUG_CHARS else words
    name = f"{number:04d}_{slug or words[:_MAX_SLUG_CHARS]}".rstrip("_")
    return folder / f"{name}.toml"


def _name_project(module: str, state: RecordedState) -> str:
    """Return the identifier of a chain: the name of the class, and a digest of its first state."""
    name = re.sub(r"\W+", "_", module.rpartition(":")[2]).strip("_").lower() or "module"
    return f"{name[:40]}-{state.digest[:8]}"


def _read_date() -> date:
    """Return today, or the day of SOURCE_DATE_EPOCH, so that builds are reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)
    return now.date()
