"""Module or checkpoint -> lock file (its contract) or golden file (its recorded outputs)."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.commands.gating.configured_locks import find_locked_module, list_configured_locks
from ckptool.commands.sources.checkpoint_paths import PathLike, open_checkpoint_or_stdin
from ckptool.commands.sources.configured_models import list_configured_targets
from ckptool.commands.sources.module_choice import ModuleOptions, need_target
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import DescribeModule, RecordGolden
from ckptool.commands.worker.worker import get_worker, start_early
from ckptool.compare.contracts import contract, contract_lock
from ckptool.compare.contracts.contract import Contract
from ckptool.compare.contracts.contract_diff import compare_contracts
from ckptool.compare.states import require_undamaged
from ckptool.config import ModelEntry, ProjectConfig, load_config
from ckptool.errors import ModuleError, ReadError, UsageError, WriteError
from ckptool.formats.files.atomic import check_target
from ckptool.formats.files.output_group import write_file, write_separately
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location, parse_location
from ckptool.model import Checkpoint, Skipped
from ckptool.phrases import describe_missing_parts
from ckptool.policy import Policy, judge
from ckptool.reports.lock import (
    LockOutcome,
    LockReport,
    ProjectLockReport,
    build_lock_report,
    build_project_lock_report,
)
from ckptool.rules import run_rules

if TYPE_CHECKING:
    from torch import nn

DEFAULT_NAME = "ckpt.lock.json"


def lock(  # noqa: PLR0913
    path: PathLike | None = None,
    *,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    loader: str | None = None,
    at: str | None = None,
    base: PathLike | None = None,
    output: str | Path | None = None,
    check: bool = False,
    update: bool = False,
    golden: str | Path | None = None,
    inputs: object = None,
    tolerances: Mapping[str, float] | None = None,
    force: bool = False,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
) -> LockReport | ProjectLockReport:
    """Write the contract of a module or a checkpoint, or with `golden` a module's outputs.

    Args:
        path: the checkpoint; with `golden`, the one whose weights are used.
        module: "package.module:Name", a live module, or a class or function to call; None, without
            `path`, takes the module whose `against` is `output`, else all modules of the
            configuration: the lock of each is its `against`, if that is a .json file, else
            NAME.lock.json next to the configuration.
        kwargs: constructor arguments; for a live module, those it was built with.
        fresh: function that builds a module like a live one, if `kwargs` do not determine it.
        loader: framework whose loader loads it ("transformers", ...), or "torch" for
            load_state_dict; None selects it by the folder.
        at: dotted place of the state in the file ("state_dict").
        base: folder of an adapter's base model; None takes the one that its configuration names.
        output: the lock file; None is "ckpt.lock.json"; an existing lock is replaced.
        check: write nothing; report whether the lock on disk is up to date.
        update: the lock has to be there already; without a module, the configuration's entry whose
            `against` it is gives it.
        golden: file for the recorded outputs; then no lock is written.
        inputs: arguments of forward, as for `verify`.
        tolerances: device ("cpu", "cuda") -> absolute and relative tolerance for later replays.
        force: replace a file that is not a lock.
        policy: reported findings if the lock is stale.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        ReadError: a file cannot be read, or the lock on disk is invalid.
        ModuleError: the module cannot be imported or built, or does not run.
        WriteError: the file cannot be written, or exists and is not a lock.
        UsageError: the options exclude each other.
    """
    module_options = ModuleOptions(module, kwargs, at, loader=loader, base=base, fresh=fresh)
    reject_unused_options({"--check": check and update}, "writes nothing, and --update writes")
    reject_unused_options(
        {"--base": base is not None and golden is None},
        "is for --golden, which runs an adapter in its base",
    )
    if golden is not None:
        if path is None or output is not None or check or update:
            raise UsageError(
                "--golden records the outputs of a module with a checkpoint: ckptool lock PATH "
                "--golden FILE -m MODULE; write the lock itself in a separate run"
            )
        source = parse_location(path)
        golden_target = need_target(source, module_options, config)
        return _record_golden(
            golden_target, source, Path(golden), inputs, tolerances or {}, limits, force=force
        )
    unused_options = {"--input": inputs is not None, "--tolerance": bool(tolerances)}
    reject_unused_options(unused_options, "is for the outputs that --golden FILE records")
    module_target = module_options.target
    if path is None and module is None:
        unused_options = {"-k": bool(kwargs), "--loader": loader is not None}
        reject_unused_options(unused_options, "is for the module that -m names")
        settings = load_config(Path.cwd()) if config is None else config
        module_target = None if output is None else find_locked_module(settings, Path(output))
        if module_target is None:
            if update and output is not None:
                raise UsageError(f"-o {output}: it is the `against` of no entry of [[models]]")
            targets = _list_project_locks(settings, output)
            return _lock_modules(targets, settings, policy, check=check, update=update, force=force)
        settings.announce_code(str(module_target.module))
    location = Path(DEFAULT_NAME if output is None else output)
    if update and not location.exists():
        raise ReadError(location, "there is no lock to update: write it without --update")
    locked = _describe_locked(path, module_target, module_options, limits)
    return _write_or_check(location, locked, policy or Policy(), check=check, force=force)


class _Locked(Struct, frozen=True):
    """What a lock is of, as it is now."""

    contract: Contract
    skipped: tuple[Skipped, ...]
    checkpoint: Checkpoint | None = None
    """None where it is a module."""


def _write_or_check(
    location: Path, locked: _Locked, policy: Policy, *, check: bool, force: bool = False
) -> LockReport:
    """Compare a lock with what it is of, write it unless that is all, and report.

    Raises:
        ReadError: the lock on disk is invalid, or is to be checked and missing.
        WriteError: it cannot be written, or the file is not a lock.
    """
    old_contract = _read_old_lock(location, check=check, force=force)
    lock_text = contract_lock.format_lock(locked.contract)
    is_unchanged = old_contract is not None and contract_lock.format_lock(old_contract) == lock_text
    contract_diff = (
        None if old_contract is None else compare_contracts(old_contract, locked.contract)
    )
    outcome = LockOutcome(
        location,
        locked.contract,
        contract_diff,
        is_unchanged=is_unchanged,
        is_check=check,
        skipped=locked.skipped,
    )
    if check:
        findings = run_rules([contract_diff]) if contract_diff else ()
        return build_lock_report(outcome, judge(findings, policy, differs=not is_unchanged))
    if not is_unchanged:
        checkpoint = locked.checkpoint
        inputs = () if checkpoint is None else (checkpoint.path, *checkpoint.files)
        _check_and_write(location, lock_text.encode(), inputs)
    return build_lock_report(outcome, judge([], policy))


def lock_all(
    *,
    check: bool = False,
    update: bool = False,
    policy: Policy | None = None,
    config: ProjectConfig | None = None,
) -> ProjectLockReport:
    """Write or check every lock that the configuration names: `against` of its `[[models]]`.

    Args:
        check: write nothing; report which locks are out of date.
        update: write only locks that already exist; the others are reported as skipped.
        policy: reported findings if a lock is out of date.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        ConfigError: the configuration is invalid.
        UsageError: it names no lock, or two modules share one.
    """
    reject_unused_options({"--check": check and update}, "writes nothing, and --update writes")
    settings = load_config(Path.cwd()) if config is None else config
    targets = list_configured_locks(settings).items()
    return _lock_modules(targets, settings, policy, check=check, update=update)


def _lock_modules(
    targets: Iterable[tuple[Path, ModuleTarget]],
    config: ProjectConfig,
    policy: Policy | None,
    *,
    check: bool,
    update: bool,
    force: bool = False,
) -> ProjectLockReport:
    """Write or check the lock of each module; errors do not stop the others.

    Raises:
        UsageError: with `update`, none of the locks exists.
    """
    reports, errors, missing_paths = [], [], []
    for path, module_target in targets:
        if update and not path.exists():
            missing_paths.append(path)
            continue
        config.announce_code(str(module_target.module))
        try:
            locked = _describe_locked_module(module_target)
            with write_separately():
                reports.append(
                    _write_or_check(path, locked, policy or Policy(), check=check, force=force)
                )
        except (ReadError, ModuleError, WriteError) as error:
            errors.append(str(error))
    if missing_paths and not (reports or errors):
        raise UsageError("--update: there is no lock yet: write the locks without --update")
    skipped = tuple(Skipped(str(p), "there is no lock to update") for p in missing_paths)
    return build_project_lock_report(tuple(reports), tuple(errors), skipped, is_check=check)


def _list_project_locks(
    config: ProjectConfig, output: str | Path | None
) -> list[tuple[Path, ModuleTarget]]:
    """Return the lock and the module of each module of a configuration.

    Raises:
        UsageError: it names no module, or several and `output` is for one.
    """
    entries = list_configured_targets(config)
    if not entries:
        raise UsageError(
            "a lock needs a source: a module (-m package.module:Name), a checkpoint, or "
            "[[tool.ckptool.models]] of pyproject.toml or ckptool.toml (ckptool init writes it)"
        )
    if output is not None and len(entries) > 1:
        raise UsageError(f"-o {output}: the configuration names {len(entries)} modules: use -m")
    paths = [Path(output)] if output is not None else _name_locks(entries, config)
    return [(path, target) for path, (_, target) in zip(paths, entries, strict=True)]


def _name_locks(
    entries: Sequence[tuple[ModelEntry, ModuleTarget]], config: ProjectConfig
) -> list[Path]:
    """Return the file of each lock, relative to the current directory if it is in it."""
    folder = Path(os.path.relpath(config.directory))
    names: list[str] = []
    for entry, _ in entries:
        stem = re.sub(r"\W+", "_", entry.module.rpartition(":")[2]).strip("_")
        name = DEFAULT_NAME if len(entries) == 1 else f"{stem}.lock.json"
        if entry.against is not None and entry.against.endswith(".json"):
            name = entry.against
        elif name in names:
            name = f"{stem}-{len(names) + 1}.lock.json"
        names.append(name)
    return [folder / name for name in names]


def _describe_locked(
    path: PathLike | None,
    module_target: ModuleTarget | None,
    module_options: ModuleOptions,
    limits: Limits,
) -> _Locked:
    if path is None and module_target is not None:
        reject_unused_options(
            {"--at": module_options.at is not None},
            "is a key path in a checkpoint, but this lock was made from a module",
        )
        return _describe_locked_module(module_target)
    if path is not None and module_target is None:
        reject_unused_options(
            {"-k": bool(module_options.kwargs)},
            "applies to a module, but this lock was made from a checkpoint",
        )
        checkpoint = open_checkpoint_or_stdin(path, limits)
        require_undamaged(checkpoint)
        if checkpoint.missing_parts:
            raise ReadError(checkpoint.path, describe_missing_parts(checkpoint.missing_parts))
        state = contract.choose_state(checkpoint, module_options.at, None)
        new_contract = contract.build_state_contract(checkpoint, state)
        return _Locked(new_contract, checkpoint.skipped, checkpoint)
    raise UsageError("a lock needs one source: a module (-m package.module:Name) or a checkpoint")


def _describe_locked_module(module_target: ModuleTarget) -> _Locked:
    module_info = get_worker().ask(DescribeModule(module_target)).module_info
    return _Locked(contract.build_module_contract(module_info), module_info.skipped)


def _read_old_lock(path: Path, *, check: bool, force: bool) -> Contract | None:
    """Return the existing lock; None if there is none, or with `force` if it need not be read.

    Raises:
        ReadError: with `check`, it does not exist; or it is invalid.
        WriteError: the file exists and is not a lock.
    """
    if check:
        if not path.exists():
            raise ReadError(path, "there is no lock file: create it with `ckptool lock`")
        return contract_lock.read_lock(path)
    check_target(path, (), force=True, folder=False)
    if not path.exists():
        return None
    if contract_lock.is_lock(path):
        return None if force else contract_lock.read_lock(path)
    if not force:
        raise WriteError(
            f"{path}: already exists and is not a lock: choose another file, or replace it with "
            "--force"
        )
    return None


def _record_golden(
    module_target: ModuleTarget,
    location: Location,
    golden: Path,
    inputs: object,
    tolerances: Mapping[str, float],
    limits: Limits,
    *,
    force: bool,
) -> LockReport:
    sources = [location] if isinstance(location, Path) else []
    check_target(golden, sources, force=force, folder=False)
    worker = get_worker()
    start_early(worker, module_target, location)
    checkpoint = open_checkpoint_or_stdin(location, limits)
    require_undamaged(checkpoint)
    recording = worker.ask(RecordGolden(module_target, checkpoint, inputs, tolerances))
    _check_and_write(golden, recording.content, force=force)
    new_contract = contract.build_module_contract(recording.module_info)
    outcome = LockOutcome(
        golden,
        new_contract,
        None,
        is_unchanged=False,
        is_check=False,
        golden=str(location),
        input_source=recording.input_source,
    )
    return build_lock_report(outcome, judge([], Policy()))


def _check_and_write(
    path: Path, content: bytes, inputs: Sequence[Location] = (), *, force: bool = True
) -> None:
    local_inputs = [location for location in inputs if isinstance(location, Path)]
    check_target(path, local_inputs, force=force, folder=False)
    write_file(path, content, force=force)
