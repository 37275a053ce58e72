"""A lock, a checkpoint or a module -> its contract; old files -> how they get into a module."""

import re
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool import contract, lockfile
from ckptool.api.target import PathLike, Target, opened
from ckptool.contract import Contract, Fixture, Holding
from ckptool.errors import PlanError, UsageError
from ckptool.formats.limits import Limits
from ckptool.model import Checkpoint, ModuleState, Skipped
from ckptool.verification.facts import Replay

if TYPE_CHECKING:
    from torch import nn

    from ckptool.migration.ops import Operation
    from ckptool.migration.plan import Plan
    from ckptool.verification.golden import Golden

_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_MODULE_CODE: Final = "the module was not named: -m package.module:Name"


class Held(Struct, frozen=True):
    """What a release was held to: subjects for the rules, and what was not looked at."""

    holding: Holding | None = None
    fixtures: tuple[Fixture, ...] = ()
    replays: tuple[Replay, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def subjects(self) -> tuple[object, ...]:
        held = () if self.holding is None else (self.holding,)
        return (*held, *self.fixtures, *self.replays)


def older(
    against: "PathLike | nn.Module", new: Contract, target: Target | None, limits: Limits
) -> Contract:
    """Return the contract of a lock file, an older checkpoint, or an older module.

    Raises:
        ReadError: the file cannot be read, or is a lock with a fault.
        ModuleError: the module cannot be imported or built.
    """
    if not isinstance(against, str | Path):
        return contract.of_module(Target(against).examined({}))
    if _is_name(against):
        kwargs = target.kwargs if target else {}
        search = target.search if target else ()
        # Of these arguments it gets those that it knows: it is another class.
        return contract.of_module(Target(str(against), search=search).examined(kwargs))
    path = Path(against)
    if lockfile.is_lock(path):
        return lockfile.read(path)
    checkpoint = opened(path, limits)
    return contract.of_state(checkpoint, contract.state_of(checkpoint, None, new))


def newer(checkpoint: Checkpoint, at: str | None, like: ModuleState | None) -> Contract:
    """Return the contract of a checkpoint that is about to be released."""
    return contract.of_state(checkpoint, contract.state_of(checkpoint, at, like))


def found_files(patterns: Iterable[PathLike]) -> tuple[Path, ...]:
    """Return the files that paths and globs lead to, each once, in order.

    Raises:
        UsageError: one of them leads to nothing: what is not there was not checked.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        text = str(pattern)
        paths = [text] if Path(text).exists() else sorted(glob(text, recursive=True))  # noqa: PTH207
        if not paths:
            raise UsageError(f"--fixtures {text}: there is no such file")
        found |= dict.fromkeys(map(Path, paths))
    return tuple(found)


def fixtures_of(
    paths: Sequence[Path], target: Target, plans: Sequence[PathLike], limits: Limits
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
    with target.side(checkpoint) as side:
        name = side.loading.module.target
        strict = load.strictly(load.subject(side.maker, side.loading))
    if strict.status is Status.PASSED:
        return Fixture(str(path), name, "loads strictly")
    reasons = []
    for plan_name, plan in ({"": None} | dict(plans)).items():
        steps, reason = _planned(path, target, plan, limits)
        if not reason:
            way = f"plan {plan_name}" if plan_name else "migrates"
            return Fixture(str(path), name, f"{way}: {steps}", plan=plan_name)
        reasons.append(f"{plan_name}: {reason}" if plan_name else reason)
    return Fixture(str(path), name, "", "; ".join(_without(path, reason) for reason in reasons))


def _planned(path: Path, target: Target, plan: "Plan | None", limits: Limits) -> tuple[str, str]:
    """Return the steps of a dry run, in words, and why it does not lead there, "" where it does."""
    from ckptool.migration.run import Request, run
    from ckptool.migration.write import TORCH

    request = Request(
        source=path, target=None, module=target.built, at=target.at, to=TORCH, plan=plan,
        dry_run=True, limits=limits,
    )  # fmt: skip
    try:
        done = run(request)
    except PlanError as error:
        return "", str(error)
    if done.loading is None or not done.loading.strict:
        return "", "what it leads to does not load strictly"
    return ", ".join(map(_step, done.plan.ops)) or "nothing to do", ""


def _step(op: "Operation") -> str:
    before, after = op.words
    return f"{op.__struct_config__.tag} {after if before == '-' else before}"


def _without(path: Path, reason: str) -> str:
    return reason.removeprefix(f"{path}: ")


def brought(fixtures: Sequence[Fixture], holding: Holding) -> Holding:
    """Return a holding that knows what the fixtures have shown: how old files get new keys.

    One old file without a way is enough to prove nothing.
    """
    if not fixtures or not all(one.way for one in fixtures):
        return holding
    count = f"{len(fixtures)} old file{'' if len(fixtures) == 1 else 's'}"
    how = f"proved by {count}: {fixtures[0].way}"
    return contract.hold(holding.old, holding.new, dict.fromkeys(holding.added, how))


def replays_of(
    goldens: Sequence[PathLike],
    checkpoints: Sequence[tuple[Checkpoint, Target | None]],
    device: str,
) -> tuple[tuple[Replay, ...], tuple[Skipped, ...]]:
    """Run each golden file's inputs again, with the checkpoint that it was recorded for.

    That is the one of its name, or the only one.

    Raises:
        ReadError: a golden file has a fault.
        UsageError: there is no such device.
    """
    from ckptool.verification import golden as goldens_

    done: list[Replay] = []
    skipped: list[Skipped] = []
    for path in goldens:
        golden = goldens_.read(Path(path))
        named = [c for c in checkpoints if c[0].path.name == golden.record.checkpoint]
        chosen = named or (list(checkpoints) if len(checkpoints) == 1 else [])
        if not chosen:
            reason = f"none of the checkpoints is called {golden.record.checkpoint}"
            skipped.append(Skipped(str(path), reason))
        for checkpoint, target in chosen:
            one = _replay(golden, checkpoint, target, device)
            if isinstance(one, Replay):
                done.append(one)
                skipped.extend(one.skipped)
            else:
                skipped.append(one)
    return tuple(done), tuple(skipped)


def _replay(
    golden: "Golden", checkpoint: Checkpoint, target: Target | None, device: str
) -> Replay | Skipped:
    from ckptool.verification import golden as goldens

    what = f"{golden.path} with {checkpoint.path}"
    if target is None:
        return Skipped(what, _MODULE_CODE)
    with target.side(checkpoint) as side:
        return goldens.replay(side, golden, device)


def _is_name(text: PathLike) -> bool:
    """Whether it names a module rather than a file."""
    return isinstance(text, str) and bool(_NAME.fullmatch(text)) and not Path(text).exists()
