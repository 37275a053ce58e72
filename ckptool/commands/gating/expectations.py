"""GateExpectations -> GateEvidence: compare contracts, migrate fixtures, replay golden files."""

import os
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.gating.configured_locks import is_module_name
from ckptool.commands.sources.checkpoint_paths import PathLike, open_checkpoint_or_stdin
from ckptool.commands.sources.configured_models import list_configured_targets
from ckptool.commands.sources.file_arguments import FileArguments, drop_places
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import CheckFixture, DescribeModule, ReplayGolden
from ckptool.commands.worker.worker import ModuleWorker
from ckptool.compare.contracts import contract, contract_lock
from ckptool.compare.contracts.contract import Contract, FixtureResult
from ckptool.compare.contracts.contract_diff import ContractDiff, compare_contracts
from ckptool.compare.remainder_diff import ALL_STATES, RemainderDiff, compare_remainder
from ckptool.config import ModelEntry, ProjectConfig
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.locations import Location, RemotePath, parse_location
from ckptool.model import Checkpoint, ModuleInfo, Skipped
from ckptool.reports.gate import GateEvidence
from ckptool.verification.result import GoldenReplay

if TYPE_CHECKING:
    from torch import nn


_NO_MODULE: Final = "no module was given: use -m package.module:Name"


class GateExpectations(Struct, frozen=True):
    """Compatibility requirements of a release: contract, old checkpoints, recorded outputs."""

    against: "PathLike | nn.Module | None" = None
    """A lock, an older checkpoint, or an older module."""
    fixtures: tuple[str | Path, ...] = ()
    """Old checkpoints, or globs of them, that the current module must load or migrate."""
    golden: tuple[str | Path, ...] = ()
    """Files with recorded outputs."""
    plans: tuple[str | Path, ...] = ()
    """Migration plans released with the code, tried on the fixtures."""
    has_many_checkpoints: bool = False
    """More than one checkpoint is gated: a golden file then applies to the one with its stem."""
    device: str = "auto"
    """Device on which golden files are replayed."""

    @property
    def has_module_expectations(self) -> bool:
        """Whether any of them can be checked with a module and no checkpoint."""
        return self.against is not None or bool(self.fixtures)


def resolve_expectations(
    expectations: GateExpectations, config: ProjectConfig, path: Location
) -> GateExpectations:
    """Return `expectations` with unset fields filled from the configuration's entry of `path`."""
    entry = config.find_entry(path)
    return expectations if entry is None else _fill_from_entry(expectations, entry, config)


def targets_without_checkpoint(
    expectations: GateExpectations,
    module_target: ModuleTarget | None,
    config: ProjectConfig,
    *,
    modules_only: bool,
) -> list[tuple[ModuleTarget, GateExpectations]]:
    """Return the modules that can be judged without a checkpoint, with what they are held to.

    The module in `target`; if None, the configured ones. Those without `against` and `fixtures`
    are judged by their own state, and only with `modules_only`.

    Raises:
        UsageError: there is none, and no entry of the configuration that could be reported.
    """
    if module_target is not None:
        candidates = [(module_target, expectations)]
    else:
        candidates = [
            (target, _fill_from_entry(expectations, entry, config))
            for entry, target in list_configured_targets(config)
        ]
    checkable = [
        (candidate, candidate_expectations)
        for candidate, candidate_expectations in candidates
        if modules_only or candidate_expectations.has_module_expectations
    ]
    for candidate, _ in checkable if module_target is None else ():
        config.announce_code(str(candidate.module))
    is_reported = bool(config.settings.models) and module_target is None and not modules_only
    if not checkable and not is_reported:
        raise UsageError(
            "no checkpoint was given, here or in [[tool.ckptool.models]]: ckptool gate PATH..., "
            "or, to compare a module with a lock: "
            "ckptool gate -m package.module:Name --against ckpt.lock.json"
        )
    return checkable


def _fill_from_entry(
    expectations: GateExpectations, entry: ModelEntry, config: ProjectConfig
) -> GateExpectations:
    # Relative to the working directory: a report should not name folders of the machine.
    config_folder = Path(os.path.relpath(config.directory))
    against = entry.against
    if against is not None and not is_module_name(against):
        against = str(config_folder / against)
    return replace(
        expectations,
        against=against if expectations.against is None else expectations.against,
        fixtures=expectations.fixtures or tuple(config_folder / path for path in entry.fixtures),
        plans=expectations.plans or tuple(config_folder / path for path in entry.plans),
        golden=expectations.golden or tuple(config_folder / path for path in entry.golden),
        has_many_checkpoints=expectations.has_many_checkpoints and bool(expectations.golden),
    )


def check_expectations(
    expectations: GateExpectations,
    checkpoint: Checkpoint | None,
    module_info: ModuleInfo | None,
    module_target: ModuleTarget | None,
    limits: Limits,
    worker: ModuleWorker,
) -> GateEvidence:
    """Check a checkpoint with its module, or a module without one, against the expectations.

    Raises:
        ReadError: a lock, an old checkpoint or a golden file cannot be read.
        ModuleError: an older module cannot be built.
        PlanError: a plan file is invalid.
        UsageError: a fixture pattern matches nothing, or the device does not exist.
    """
    fixtures, unchecked = _expand_and_check_fixtures(expectations, module_target, limits, worker)
    contract_diff: ContractDiff | None = None
    skipped: tuple[Skipped, ...] = ()
    if expectations.against is not None:
        old = _resolve_against(expectations.against, module_target, limits, worker)
        try:
            contracts = _build_contracts(old, checkpoint, module_info, module_target)
        except UsageError as error:
            unchecked = (*unchecked, Skipped(f"against {expectations.against}", str(error)))
        else:
            contract_diff = _apply_fixture_results(fixtures, compare_contracts(*contracts))
            if isinstance(old, Checkpoint) and checkpoint is not None:
                remainder = compare_remainder(old, checkpoint, (ALL_STATES, ALL_STATES))
                contract_diff = replace(contract_diff, remainder=remainder)
                skipped = tuple(_list_uncompared(old, remainder))
    replays, skipped_replays = _replay_golden_files(expectations, checkpoint, module_target, worker)
    return GateEvidence(
        contract_diff,
        fixtures,
        replays,
        (*skipped, *skipped_replays),
        unchecked,
        tuple(map(str, expectations.golden)),
    )


def list_unreplayed(evidences: Sequence[GateEvidence]) -> tuple[Skipped, ...]:
    """Return the files of recorded outputs that were compared with no checkpoint of the release."""
    replayed = {
        replay.golden
        for evidence in evidences
        for replay in evidence.replays
        if replay.output_drifts or replay.matching_devices
    }
    names = dict.fromkeys(name for evidence in evidences for name in evidence.golden)
    skipped = [entry for evidence in evidences for entry in evidence.skipped]
    skipped += [e for evidence in evidences for r in evidence.replays for e in r.skipped]
    return tuple(
        Skipped(name, "; ".join(e.reason for e in skipped if e.what.startswith(name)))
        for name in names
        if name not in replayed
    )


def _list_uncompared(old: Checkpoint, remainder: RemainderDiff) -> list[Skipped]:
    """Return what a contract leaves out of a comparison with an older checkpoint."""
    reason = (
        "only keys, shapes and dtypes are compared with it: use ckptool diff OLD NEW for values"
    )
    return [
        Skipped(f"values against {old.path}", reason),
        *(Skipped(f"{what} against {old.path}", why) for what, why in remainder.uncompared.items()),
    ]


def _expand_and_check_fixtures(
    expectations: GateExpectations,
    module_target: ModuleTarget | None,
    limits: Limits,
    worker: ModuleWorker,
) -> tuple[tuple[FixtureResult, ...], tuple[Skipped, ...]]:
    paths = _expand_globs(expectations.fixtures)
    if module_target is None:
        return (), tuple(Skipped(str(path), _NO_MODULE) for path in paths)
    return check_fixtures(paths, module_target, expectations.plans, limits, worker), ()


def _build_contracts(
    old: Contract | Checkpoint,
    checkpoint: Checkpoint | None,
    module_info: ModuleInfo | None,
    module_target: ModuleTarget | None,
) -> tuple[Contract, Contract]:
    """Return the old and the new contract; the new one from the module if given: it has more.

    Raises:
        UsageError: the state to use in a file is ambiguous.
    """
    at = module_target.at if module_target else None
    if module_info is not None:
        new = contract.build_module_contract(module_info)
    else:
        assert checkpoint is not None, "--against needs a module or a checkpoint"
        reference_contract = old if isinstance(old, Contract) else None
        state = contract.choose_state(checkpoint, at, reference_contract)
        new = contract.build_state_contract(checkpoint, state, reference_contract)
    if isinstance(old, Contract):
        return old, new
    old_state = contract.choose_state(old, None, module_info or new)
    old_contract = contract.build_state_contract(old, old_state, new)
    if module_info is None and checkpoint is not None:
        new = contract.build_state_contract(checkpoint, state, old_contract)
    return old_contract, new


def _resolve_against(
    against: "PathLike | nn.Module",
    module_target: ModuleTarget | None,
    limits: Limits,
    worker: ModuleWorker,
) -> Contract | Checkpoint:
    """Return the contract of a lock file or an older module, or the opened older checkpoint."""
    if not isinstance(against, PathLike):
        return _build_module_contract(ModuleTarget(against), {}, worker)
    if is_module_name(str(against)) and not Path(str(against)).exists():
        kwargs = drop_places(module_target.kwargs) if module_target else {}
        search_paths = module_target.search_paths if module_target else ()
        # It is another class: pass only the arguments that its constructor accepts.
        old_target = ModuleTarget(str(against), search_paths=search_paths)
        return _build_module_contract(old_target, kwargs, worker)
    path = parse_location(against)
    if isinstance(path, RemotePath) or not contract_lock.is_lock(path):
        return open_checkpoint_or_stdin(path, replace(limits, contents=True))
    return contract_lock.read_lock(path)


def _build_module_contract(
    target: ModuleTarget, defaults: Mapping[str, object], worker: ModuleWorker
) -> Contract:
    request = DescribeModule(target, FileArguments(defaults, given_names=frozenset(defaults)))
    return contract.build_module_contract(worker.ask(request).module_info)


def _expand_globs(patterns: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the files that paths and globs match, without duplicates, in order.

    Raises:
        UsageError: a pattern matches nothing; ignoring it would leave a fixture unchecked.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        text = str(pattern)
        exists = Path(text).exists()
        paths = [text] if exists else sorted(glob(text, recursive=True))  # noqa: PTH207
        if not paths:
            raise UsageError(f"--fixtures {text}: no file matches: give old checkpoints, or a glob")
        files |= dict.fromkeys(map(Path, paths))
    return tuple(files)


def check_fixtures(
    paths: Sequence[Path],
    module_target: ModuleTarget,
    plans: Sequence[str | Path],
    limits: Limits,
    worker: ModuleWorker,
) -> tuple[FixtureResult, ...]:
    """Return for each old checkpoint its route into the current module, or why there is none.

    Raises:
        ReadError: a checkpoint cannot be read.
        PlanError: a plan file is invalid.
        ModuleError: the module cannot be imported or built.
    """
    from ckptool.migration.plan.plan_file import read_plan_file

    plans_by_name = {str(path): read_plan_file(Path(path)) for path in plans}
    return tuple(
        worker.ask(CheckFixture(module_target, path, plans_by_name, limits)) for path in paths
    )


def _apply_fixture_results(
    fixtures: Sequence[FixtureResult], contract_diff: ContractDiff
) -> ContractDiff:
    """Return the ContractDiff with new keys marked as migratable where the fixtures prove it.

    Unchanged if any fixture has no route. Only a fixture that lacks a key proves that old files
    without it can be migrated.
    """
    if not all(fixture.route for fixture in fixtures):
        return contract_diff
    migrations = {
        key: f"proved by {fixture.path}, which {fixture.route}"
        for fixture in reversed(fixtures)
        for key in fixture.missing_keys
    }
    return (
        compare_contracts(contract_diff.old, contract_diff.new, migrations)
        if migrations
        else contract_diff
    )


def _replay_golden_files(
    expectations: GateExpectations,
    checkpoint: Checkpoint | None,
    module_target: ModuleTarget | None,
    worker: ModuleWorker,
) -> tuple[tuple[GoldenReplay, ...], tuple[Skipped, ...]]:
    """Replay each golden file with the weights of the checkpoint."""
    if not expectations.golden:
        return (), ()
    paths = tuple(map(Path, expectations.golden))
    if checkpoint is None or module_target is None:
        from ckptool.verification.golden import read_golden

        reason = _NO_MODULE if checkpoint else "skipped: golden outputs need a checkpoint"
        return (), tuple(Skipped(str(read_golden(path).path), reason) for path in paths)
    request = ReplayGolden(
        module_target, checkpoint, paths, expectations.has_many_checkpoints, expectations.device
    )
    result = worker.ask(request)
    return result.replays, result.skipped
