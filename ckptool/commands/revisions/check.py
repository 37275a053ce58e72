"""Chain x today's module -> ChainCheckReport: whether files of each revision reach the head."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.revisions.chain_migration import (
    MovedFile,
    MoveOptions,
    compare_with_earlier,
    move_checkpoint,
)
from ckptool.commands.revisions.chain_steps import Direction, find_irreversible_step
from ckptool.commands.revisions.fixtures import (
    FIXTURES_FOLDER,
    find_fixture,
    find_golden,
    list_fixture_paths,
)
from ckptool.commands.revisions.project_chain import ProjectChain, build_options, find_project_chain
from ckptool.commands.revisions.skeleton import apply_to_skeleton
from ckptool.commands.revisions.unrecorded_change import describe_module, find_unrecorded_change
from ckptool.commands.worker.requests import ReplayGolden
from ckptool.commands.worker.worker import get_worker
from ckptool.config import ProjectConfig
from ckptool.errors import CkptoolError, ModuleError, ReadError, RevisionError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.files.output_group import write_separately
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.migration.plan.target_module import TargetModule
from ckptool.model import Skipped
from ckptool.phrases import MAX_NAMED, join_limited
from ckptool.policy import Policy, judge
from ckptool.reports.revisions.check import (
    ArrivalReport,
    ChainCheckReport,
    build_chain_check_report,
)
from ckptool.revisions.chain import Chain
from ckptool.revisions.recorded_state import compare_states
from ckptool.revisions.revision import Revision
from ckptool.rules import run_rules
from ckptool.rules.chain.arrivals import ChainChange, FixtureArrival

if TYPE_CHECKING:
    from torch import nn

_PASSED: Final = "passed"
_FAILED: Final = "failed"
_NOT_CHECKED: Final = "not checked"


def check(
    *,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    loader: str | None = None,
    chain: str | Path | None = None,
    run_python: bool = True,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
) -> ChainCheckReport:
    """Check that the chain of migrations belongs to today's module, and that old files arrive.

    The state of the module must be the one that the head records. The fixture of every revision is
    upgraded to the head, loaded strictly, run on its recorded inputs, and downgraded where that is
    possible.

    Args:
        module: today's module; None takes the configuration's.
        kwargs: constructor arguments.
        loader: framework whose loader is used; None selects it by the folder.
        chain: folder of the revisions; None takes `ckpt_migrations` of the configuration.
        run_python: whether revisions that are Python functions may be run.
        policy: reported findings.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        RevisionError: there is no chain, it is inconsistent, or it has several heads.
        ModuleError: the module cannot be built.
        UsageError: there is no module.
    """
    project = find_project_chain(build_options(config, module, kwargs, loader, chain))
    revision_chain = project.read()
    revision_chain.require_one_head()
    target_module = describe_module(project, "check")
    change = find_unrecorded_change(revision_chain, target_module)
    words = [] if chain is None else ["--chain", str(chain)]
    words += ["--module", module] if isinstance(module, str) else []
    words += [word for key, value in (kwargs or {}).items() for word in ("-k", f"{key}={value!r}")]
    examiner = _FixtureExaminer(
        project, revision_chain, target_module, change, run_python, limits, tuple(words)
    )
    results = [examiner.examine(revision) for revision in revision_chain.revisions]
    subjects = [change, *(result.arrival for result in results)]
    findings = run_rules(subjects, revision_chain.folder)
    return build_chain_check_report(
        str(revision_chain.folder),
        revision_chain.head.name,
        [result.report for result in results],
        judge(findings, policy or Policy()),
        change.difference,
        [
            *_join_reasons(skipped for result in results for skipped in result.skipped),
            *_find_lost_fixtures(revision_chain),
        ],
    )


class _FixtureResult(Struct, frozen=True):
    """What became of the fixture of one revision."""

    arrival: FixtureArrival
    report: ArrivalReport
    skipped: tuple[Skipped, ...] = ()


class _FixtureExaminer(Struct, frozen=True):
    """Brings the fixture of each revision to the head, and back."""

    project: ProjectChain
    chain: Chain
    target_module: TargetModule
    change: ChainChange
    run_python: bool
    limits: Limits
    options: tuple[str, ...]
    """Words of a command about this chain."""

    def examine(self, revision: Revision) -> _FixtureResult:
        """Return what became of the fixture of a revision, and of its steps."""
        step_failure = self._check_steps(revision)
        fixture = find_fixture(revision)
        golden = find_golden(revision)
        arrival = FixtureArrival(
            revision.name,
            "" if fixture is None else str(fixture),
            "",
            step_failure=step_failure,
            path=str(revision.path),
            golden="" if golden is None else str(golden),
            message=revision.message,
            is_head=revision == self.chain.head,
            options=self.options,
        )
        report = ArrivalReport(name=revision.name, message=revision.message)
        if fixture is None:
            reason = "it has none: ckptool revision --fixture FILE keeps one"
            skipped = Skipped(f"fixture of {revision.name}", reason)
            return _FixtureResult(arrival, report, (skipped,))
        report = replace(report, fixture=fixture.name)
        with tempfile.TemporaryDirectory(prefix="ckptool-check-") as folder, write_separately():
            try:
                return self._follow(revision, fixture, Path(folder), arrival, report)
            except UsageError as error:
                skipped = Skipped(f"fixture of {revision.name}", str(error))
                return _FixtureResult(arrival, replace(report, arrives=_NOT_CHECKED), (skipped,))
            except CkptoolError as error:
                arrival = replace(arrival, failure=_strip_folder(str(error), folder, fixture))
                return _FixtureResult(arrival, replace(report, arrives=_FAILED))

    def _check_steps(self, revision: Revision) -> str:
        """Return why the steps of a revision do not lead to its state, "" if they do."""
        parent = self.chain.get_revision(revision.parent)
        if parent is None or revision.python:
            return ""
        try:
            operations = revision.plan.ops
            result = apply_to_skeleton(revision.path, parent.state, operations, self.target_module)
        except RevisionError as error:
            return str(error)
        return compare_states(revision.state, result).text

    def _follow(
        self,
        revision: Revision,
        fixture: Path,
        folder: Path,
        arrival: FixtureArrival,
        report: ArrivalReport,
    ) -> _FixtureResult:
        """Upgrade a fixture, run it and downgrade it again.

        Raises:
            CkptoolError: it does not arrive.
        """
        has_changed = bool(self.change.difference)
        project = replace(self.project, module_target=None) if has_changed else self.project
        target = folder / "head.pth"
        moved = self._move(fixture, target, project, "head", revision.revision)
        difference = moved.current_revision.difference
        if not moved.current_revision.is_exact and difference is not None:
            raise RevisionError(f"its fixture is not as the revision records: {difference.text}")
        report = replace(report, arrives=_PASSED)
        skipped: list[Skipped] = []
        if has_changed:
            reason = "the state of the module changed since the head"
            skipped.append(Skipped(f"loading {fixture.name}", reason))
        else:
            report = replace(report, loads=_read_load(moved))
            drift, result, reason = self._replay(revision, target)
            report, arrival = replace(report, outputs=result), replace(arrival, output_drift=drift)
            skipped += [Skipped(f"outputs of {fixture.name}", reason)] if reason else []
        back, reason = self._move_back(revision, target, folder / "back.pth")
        if back == _FAILED:
            arrival = replace(arrival, failure=reason)
        elif reason:
            skipped.append(Skipped(f"downgrade to {revision.name}", reason))
        return _FixtureResult(arrival, replace(report, back=back), tuple(skipped))

    def _move(
        self,
        source: Path,
        target: Path,
        project: ProjectChain,
        to: str,
        from_: str | None = None,
        direction: Direction = Direction.UPGRADE,
    ) -> MovedFile:
        options = MoveOptions(to, from_, run_python=self.run_python, limits=self.limits)
        return move_checkpoint(direction, source, target, project, options)

    def _replay(self, revision: Revision, path: Path) -> tuple[str, str, str]:
        """Return how the outputs differ ("" if not), the result, and why they were not compared."""
        golden, target = find_golden(revision), self.project.module_target
        if golden is None or target is None:
            return "", _NOT_CHECKED, "none were recorded"
        checkpoint = open_checkpoint(path, self.limits)
        try:
            answer = get_worker().ask(
                ReplayGolden(
                    target, checkpoint, (golden,), has_many_checkpoints=False, device="cpu"
                )
            )
        except (ModuleError, ReadError) as error:
            return "", _NOT_CHECKED, str(error)
        drifts = [drift.description for replay in answer.replays for drift in replay.output_drifts]
        if drifts:
            return drifts[0], _FAILED, ""
        if any(replay.matching_devices for replay in answer.replays):
            return "", _PASSED, ""
        return "", _NOT_CHECKED, "; ".join(skipped.reason for skipped in answer.skipped)

    def _move_back(self, revision: Revision, path: Path, target: Path) -> tuple[str, str]:
        """Return the result of a downgrade to where a fixture is from, and why it is not passed."""
        undone = self.chain.list_between(revision, self.chain.head)
        if not undone:
            return "", ""
        for later in undone:
            if reason := find_irreversible_step(later):
                return _NOT_CHECKED, f"{later.name} cannot be undone: {reason}"
        moved = self._move(
            path, target, self.project, revision.revision, direction=Direction.DOWNGRADE
        )
        if compare_with_earlier(moved):
            return _PASSED, ""
        return _FAILED, "downgraded again, it is another state"


def _join_reasons(skipped: Iterable[Skipped]) -> Iterator[Skipped]:
    """Yield what was skipped, and for one reason once: "downgrade to 0001_a, 0002_b"."""
    checks: dict[tuple[str, str], list[str]] = {}
    for item in skipped:
        kind, _, name = item.what.rpartition(" ")
        checks.setdefault((kind, item.reason), []).append(name)
    for (kind, reason), names in checks.items():
        yield Skipped(f"{kind} {join_limited(names, MAX_NAMED)}", reason)


def _find_lost_fixtures(chain: Chain) -> Iterator[Skipped]:
    """Yield the files in the folder of fixtures that are of no revision."""
    kept = {path for revision in chain.revisions for path in list_fixture_paths(revision)}
    folder = chain.folder / FIXTURES_FOLDER
    lost = sorted(p.name for p in folder.glob("*") if p.is_file() and p not in kept)
    if lost:
        reason = "no revision has that name: was its file renamed?"
        yield Skipped(f"{FIXTURES_FOLDER}/ {join_limited(lost, MAX_NAMED)}", reason)


def _read_load(moved: MovedFile) -> str:
    checks = [check for check in moved.result.checks if check.name == "strict load"]
    return _PASSED if any(check.result == "passed" for check in checks) else _NOT_CHECKED


def _strip_folder(text: str, folder: str, fixture: Path) -> str:
    return text.replace(f"{folder}/", "").removeprefix(f"{fixture}: ")
