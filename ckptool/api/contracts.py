"""A lock, a checkpoint or a module -> its contract; old files -> how they get into a module."""

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
"""Steps of a plan that a line tells."""
_NO_MODULE: Final = "no module is named: -m package.module:Name"


class Promises(Struct, frozen=True):
    """What a release is held to."""

    against: "PathLike | nn.Module | None" = None
    """A lock, an older checkpoint, or an older module."""
    fixtures: tuple[str | Path, ...] = ()
    """Old checkpoints, or globs of them, that have to get into today's module."""
    golden: tuple[str | Path, ...] = ()
    """Files with recorded outputs."""
    plans: tuple[str | Path, ...] = ()
    """Plans that are released with the code, for the fixtures."""
    several: bool = False
    """Whether more than one checkpoint is looked at: a golden file is then for that of its name."""
    device: str = "auto"
    """Where outputs are computed again."""

    @property
    def about_code(self) -> bool:
        """Whether a module alone can be held to them."""
        return self.against is not None or bool(self.fixtures)


def promised(asked: Promises, config: Config, path: Location) -> Promises:
    """Return what is asked for, and where it is not, what the configuration has for `path`."""
    entry = config.entry(path)
    return asked if entry is None else _of_entry(asked, entry, config)


def alone(asked: Promises, target: Target | None, config: Config) -> list[tuple[Target, Promises]]:
    """Return the modules that can be held to something without a checkpoint of now.

    The one that is named; else those of which the configuration says what they are held to.

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
    # As one would write it here: a report names no folder of the machine.
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
    """Hold a checkpoint, its module, or a module alone to what was promised.

    Raises:
        ReadError: a lock, an old checkpoint or a golden file cannot be read.
        ModuleError: an older module cannot be built.
        PlanError: a plan's file is no plan.
        UsageError: there are no such fixtures, or there is no such device.
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
    """Return both contracts: of now, the module's where there is one, since it knows more.

    Raises:
        UsageError: nobody can tell which state of a file is meant.
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
    """Return what a lock file or an older module promises, or the older checkpoint."""
    if not isinstance(against, PathLike):
        return contract.of_module(Target(against).examined({}))
    if _is_name(against):
        kwargs = target.kwargs if target else {}
        search = target.search if target else ()
        # Of these arguments it gets those that it knows: it is another class.
        return contract.of_module(Target(str(against), search=search).examined(kwargs))
    path = locate(against)
    if isinstance(path, RemotePath) or not lockfile.is_lock(path):
        return opened(path, limits)
    return lockfile.read(path)


def found_files(patterns: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the files that paths and globs lead to, each once, in order.

    Raises:
        UsageError: one of them leads to nothing: what is not there was not checked.
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
    """Say of each old checkpoint how it gets into today's module, or why it does not.

    Raises:
        ReadError: one cannot be read.
        PlanError: a plan's file is no plan.
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
        # The place is that of the new file; an old one may have kept its state elsewhere.
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
        # Whoever wrote a plan wants to know why it does not lead there.
        reasons = [*reasons[1:], "no plan follows from the file and the module alone"]
    return Fixture(str(path), name, "", "; ".join(_without(path, reason) for reason in reasons))


def _planned(
    path: Path, target: Target, named: "tuple[str, Plan | None]", limits: Limits
) -> tuple[str, str]:
    """Return the steps of a dry run, in words, and why it does not lead there, "" where it does."""
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
    """Return a holding that knows what the fixtures have shown: how old files get new keys.

    One old file without a way is enough to prove nothing, and a file that has a key proves nothing
    about those that lack it.
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
    """Run the inputs of each golden file again, on the weights of the checkpoint."""
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
    """Whether it names a module rather than a file."""
    return isinstance(text, str) and bool(_NAME.fullmatch(text)) and not Path(text).exists()
