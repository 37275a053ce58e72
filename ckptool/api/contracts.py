"""GateExpectations -> GateEvidence: compare contracts, migrate fixtures, replay golden files."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool import contract, lockfile
from ckptool.api.target import PathLike, Target, opened
from ckptool.compare import unmet
from ckptool.config import Config, ModelEntry
from ckptool.contract import Contract, Fixture, Holding
from ckptool.errors import PlanError, UsageError
from ckptool.formats.limits import Limits
from ckptool.locations import Location, RemotePath, locate
from ckptool.model import Checkpoint, ModuleState, Skipped
from ckptool.reporting.promises import HeldTo
from ckptool.verification.facts import Replay

if TYPE_CHECKING:
    from torch import nn

    from ckptool.migration.ops import Operation
    from ckptool.migration.plan import Plan

_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_STEPS: Final = 4
"""Plan operations named in one line of text."""
_NO_MODULE: Final = "no module is named: -m package.module:Name"


class Promises(Struct, frozen=True):
    """Compatibility requirements of a release: contract, old checkpoints, recorded outputs."""

    against: "PathLike | nn.Module | None" = None
    """A lock, an older checkpoint, or an older module."""
    fixtures: tuple[str | Path, ...] = ()
    """Old checkpoints, or globs of them, that the current module must load or migrate."""
    golden: tuple[str | Path, ...] = ()
    """Files with recorded outputs."""
    plans: tuple[str | Path, ...] = ()
    """Migration plans released with the code, tried on the fixtures."""
    several: bool = False
    """More than one checkpoint is gated: a golden file then applies to the one with its stem."""
    device: str = "auto"
    """Device on which golden files are replayed."""

    @property
    def about_code(self) -> bool:
        """Whether any of them can be checked with a module and no checkpoint."""
        return self.against is not None or bool(self.fixtures)


def promised(asked: Promises, config: Config, path: Location) -> Promises:
    """Return `expectations` with unset fields filled from the configuration's entry of `path`."""
    entry = config.entry(path)
    return asked if entry is None else _of_entry(asked, entry, config)


def alone(asked: Promises, target: Target | None, config: Config) -> list[tuple[Target, Promises]]:
    """Return the modules with expectations that can be checked without a checkpoint.

    The module in `target`; if None, the configured modules that have `against` or `fixtures`.

    Raises:
        UsageError: there is none.
    """
    if target is not None:
        found = [(target, asked)]
    else:
        entries = {(e.module, repr(e.kwargs)): e for e in reversed(config.settings.models)}
        found = [
            (
                Target(e.module, e.kwargs, e.at, (config.directory,), e.inputs),
                _of_entry(asked, e, config),
            )
            for e in reversed(entries.values())
        ]
    kept = [(one, promises) for one, promises in found if promises.about_code]
    if not kept:
        raise UsageError(
            "no checkpoint is named: ckptool gate PATH..., or a module that is held to a lock: "
            "ckptool gate -m package.module:Name --against ckpt.lock.json"
        )
    return kept


def _of_entry(asked: Promises, entry: ModelEntry, config: Config) -> Promises:
    # Relative to the working directory: a report should not name folders of the machine.
    here = Path(os.path.relpath(config.directory))
    against = entry.against
    if against is not None and not _NAME.fullmatch(against):
        against = str(here / against)
    return replace(
        asked,
        against=against if asked.against is None else asked.against,
        fixtures=asked.fixtures or tuple(here / one for one in entry.fixtures),
        plans=asked.plans or tuple(here / one for one in entry.plans),
        golden=asked.golden or tuple(here / one for one in entry.golden),
        several=asked.several and bool(asked.golden),
    )


def held_to(
    promises: Promises,
    checkpoint: Checkpoint | None,
    module: ModuleState | None,
    target: Target | None,
    limits: Limits,
) -> HeldTo:
    """Check a checkpoint with its module, or a module without one, against the expectations.

    Raises:
        ReadError: a lock, an old checkpoint or a golden file cannot be read.
        ModuleError: an older module cannot be built.
        PlanError: a plan file is invalid.
        UsageError: a fixture pattern matches nothing, or the device does not exist.
    """
    fixtures, skipped = _fixtures(promises, target, limits)
    holding = None
    if promises.against is not None:
        old = _older(promises.against, target, limits)
        try:
            sides = _sides(old, checkpoint, module, target)
        except UsageError as error:
            skipped = (*skipped, Skipped(f"against {promises.against}", str(error)))
        else:
            holding = brought(fixtures, contract.hold(*sides))
    replays, left = _replays(promises, checkpoint, target)
    return HeldTo(holding, fixtures, replays, (*skipped, *left))


def _fixtures(
    promises: Promises, target: Target | None, limits: Limits
) -> tuple[tuple[Fixture, ...], tuple[Skipped, ...]]:
    paths = found_files(promises.fixtures)
    if target is None:
        return (), tuple(Skipped(str(path), _NO_MODULE) for path in paths)
    return fixtures_of(paths, target, promises.plans, limits), ()


def _sides(
    old: Contract | Checkpoint,
    checkpoint: Checkpoint | None,
    module: ModuleState | None,
    target: Target | None,
) -> tuple[Contract, Contract]:
    """Return the old and the new contract; the new one from the module if given: it has more.

    Raises:
        UsageError: the state to use in a file is ambiguous.
    """
    at = target.at if target else None
    if module is not None:
        new = contract.of_module(module)
    else:
        assert checkpoint is not None, "what is held to something is a module or a checkpoint"
        like = old if isinstance(old, Contract) else None
        new = contract.of_state(checkpoint, contract.state_of(checkpoint, at, like))
    if isinstance(old, Checkpoint):
        old = contract.of_state(old, contract.state_of(old, None, module or new))
    return old, new


def _older(
    against: "PathLike | nn.Module", target: Target | None, limits: Limits
) -> Contract | Checkpoint:
    """Return the contract of a lock file or an older module, or the opened older checkpoint."""
    if not isinstance(against, PathLike):
        return contract.of_module(Target(against).examined({}))
    if _is_name(against):
        kwargs = target.kwargs if target else {}
        search = target.search if target else ()
        # It is another class: pass only the arguments that its constructor accepts.
        return contract.of_module(Target(str(against), search=search).examined(kwargs))
    path = locate(against)
    if isinstance(path, RemotePath) or not lockfile.is_lock(path):
        return opened(path, limits)
    return lockfile.read(path)


def found_files(patterns: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the files that paths and globs match, without duplicates, in order.

    Raises:
        UsageError: a pattern matches nothing; ignoring it would leave a fixture unchecked.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        text = str(pattern)
        paths = [text] if Path(text).exists() else sorted(glob(text, recursive=True))  # noqa: PTH207
        if not paths:
            raise UsageError(
                f"--fixtures {text}: nothing matches it: name old checkpoints, or a glob"
            )
        found |= dict.fromkeys(map(Path, paths))
    return tuple(found)


def fixtures_of(
    paths: Sequence[Path], target: Target, plans: Sequence[str | Path], limits: Limits
) -> tuple[Fixture, ...]:
    """Return for each old checkpoint its route into the current module, or why there is none.

    Raises:
        ReadError: a checkpoint cannot be read.
        PlanError: a plan file is invalid.
        ModuleError: the module cannot be imported or built.
    """
    from ckptool.migration.plan import read_file

    named = {str(path): read_file(Path(path)) for path in plans}
    return tuple(_fixture(path, target, named, limits) for path in paths)


def _fixture(path: Path, target: Target, plans: "Mapping[str, Plan]", limits: Limits) -> Fixture:
    from ckptool.verification import load
    from ckptool.verification.facts import Status

    checkpoint = opened(path, limits)
    if target.at is not None and all(state.at != target.at for state in checkpoint.states):
        # `at` is for the new file; an old file may have its state elsewhere.
        target = replace(target, at=None)
    with target.side(checkpoint) as side:
        name, lacked = side.loading.module.target, side.loading.missing_keys
        strict = load.strictly(load.subject(side.maker, side.loading))
    if strict.status is Status.PASSED:
        return Fixture(str(path), name, "loads strictly", lacked=lacked)
    reasons = []
    for plan_name, plan in ({"": None} | dict(plans)).items():
        steps, reason = _planned(path, target, (plan_name, plan), limits)
        if not reason:
            way = f"migrates by {plan_name}" if plan_name else "migrates"
            return Fixture(str(path), name, f"{way}: {steps}", lacked=lacked)
        reasons.append(reason)
    if plans:
        # The reasons why the given plans fail come first: they are what the author can fix.
        reasons = [*reasons[1:], "no plan follows from the file and the module alone"]
    return Fixture(str(path), name, "", "; ".join(_without(path, reason) for reason in reasons))


def _planned(
    path: Path, target: Target, named: "tuple[str, Plan | None]", limits: Limits
) -> tuple[str, str]:
    """Return the plan's operations as text and "", or "" and why the dry run fails."""
    from ckptool.migration.run import Request, run
    from ckptool.migration.write import TORCH

    name, plan = named
    request = Request(
        source=path, target=None, module=target.built, at=target.at, to=TORCH, plan=plan,
        plan_name=name, dry_run=True, limits=limits,
    )  # fmt: skip
    try:
        done = run(request)
    except PlanError as error:
        return "", str(error)
    if done.loading is None or not done.loading.strict:
        left = unmet(done.loading) if done.loading else ""
        what = f"what {name or 'it'} leads to does not load strictly"
        return "", f"{what}: {left}" if left else what
    steps = [_step(op) for op in done.plan.ops]
    more = f" and {len(steps) - _STEPS} steps more" if len(steps) > _STEPS else ""
    return ", ".join(steps[:_STEPS]) + more or "nothing to do", ""


def _step(op: "Operation") -> str:
    before, after = op.words
    return f"{op.__struct_config__.tag} {after if before == '-' else before}"


def _without(path: Path, reason: str) -> str:
    return reason.removeprefix(f"{path}: ")


def brought(fixtures: Sequence[Fixture], holding: Holding) -> Holding:
    """Return the ContractDiff with new keys marked as migratable where the fixtures prove it.

    Unchanged if any fixture has no route. Only a fixture that lacks a key proves that old files
    without it can be migrated.
    """
    if not all(one.way for one in fixtures):
        return holding
    seen = {
        key: f"proved by {one.path}, which {one.way}"
        for one in reversed(fixtures)
        for key in one.lacked
    }
    return contract.hold(holding.old, holding.new, seen) if seen else holding


def _replays(
    promises: Promises, checkpoint: Checkpoint | None, target: Target | None
) -> tuple[tuple[Replay, ...], tuple[Skipped, ...]]:
    """Replay each golden file with the weights of the checkpoint."""
    if not promises.golden:
        return (), ()
    from ckptool.verification import golden

    read = [golden.read(Path(path)) for path in promises.golden]
    if checkpoint is None or target is None:
        why = _NO_MODULE if checkpoint else "no checkpoint is named: it has the weights"
        return (), tuple(Skipped(str(one.path), why) for one in read)
    stem = PurePath(checkpoint.path.name).stem
    others = [one for one in read if promises.several and Path(one.record.checkpoint).stem != stem]
    left = [
        Skipped(f"{one.path} with {checkpoint.path}", f"it is of {one.record.checkpoint}")
        for one in others
    ]
    if len(others) == len(read):
        return (), tuple(left)
    with target.side(checkpoint) as side:
        mine = [one for one in read if one not in others]
        done = tuple(golden.replay(side, one, promises.device) for one in mine)
    return done, (*left, *(skipped for one in done for skipped in one.skipped))


def _is_name(text: PathLike) -> bool:
    """Whether `text` has the form "package.module:Name" and is not an existing file."""
    return isinstance(text, str) and bool(_NAME.fullmatch(text)) and not Path(text).exists()
