"""Module or checkpoint -> lock file (its contract) or golden file (its recorded outputs)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ckptool import contract, lockfile, report
from ckptool.api.refusing import refuse
from ckptool.api.target import Named, PathLike, Target, need_target, opened
from ckptool.config import Config
from ckptool.contract import Contract
from ckptool.errors import ReadError, UsageError, WriteError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.locations import Location, locate
from ckptool.model import Skipped
from ckptool.policy import Policy, judge
from ckptool.reporting.locking import Locked, locked
from ckptool.rules import run

if TYPE_CHECKING:
    from torch import nn

DEFAULT_NAME = "ckpt.lock.json"


def lock(  # noqa: PLR0913
    path: PathLike | None = None,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    output: str | Path | None = None,
    check: bool = False,
    golden: str | Path | None = None,
    inputs: object = None,
    tolerances: Mapping[str, float] | None = None,
    force: bool = False,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
) -> report.LockReport:
    """Write the contract of a module or a checkpoint, or with `golden` a module's outputs.

    Args:
        path: the checkpoint; with `golden`, the one whose weights are used.
        module: "package.module:Name" or a live module.
        kwargs: constructor arguments.
        at: dotted place of the state in the file ("state_dict").
        output: the lock file; None is "ckpt.lock.json"; an existing lock is replaced.
        check: write nothing; report whether the lock on disk is up to date.
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
    named = Named(module, kwargs, at)
    if golden is not None:
        if path is None or output is not None or check:
            raise UsageError(
                "--golden records what a module computes with a checkpoint: lock PATH --golden "
                "FILE -m MODULE; the lock is written by another run, without --golden"
            )
        place = locate(path)
        target = need_target(place, named, config)
        return _record(target, place, Path(golden), inputs, tolerances or {}, force, limits)
    alone = {"--input": inputs is not None, "--tolerance": bool(tolerances)}
    refuse(alone, "is for the outputs that --golden FILE records")
    now, skipped = _contract(path, named, limits)
    place = Path(DEFAULT_NAME if output is None else output)
    before = _before(place, check=check, force=force)
    text = lockfile.write(now)
    same = before is not None and lockfile.write(before) == text
    held = None if before is None else contract.hold(before, now)
    done = Locked(place, now, held, same=same, check=check, skipped=skipped)
    if check:
        found = run([held]) if held else ()
        return locked(done, judge(found, policy or Policy(), differs=not same))
    if not same:
        _write(place, text.encode())
    return locked(done, judge([], policy or Policy()))


def _contract(
    path: PathLike | None, named: Named, limits: Limits
) -> tuple[Contract, tuple[Skipped, ...]]:
    if path is None and named.module is not None:
        place = {"--at": named.at is not None}
        refuse(place, "is a place in a checkpoint, and this lock is a module's")
        module = Target(named.module, named.kwargs or {}).examined({})
        return contract.of_module(module), module.skipped
    if path is not None and named.module is None:
        refuse({"-k": bool(named.kwargs)}, "is for a module, and this lock is a checkpoint's")
        checkpoint = opened(path, limits)
        state = contract.state_of(checkpoint, named.at, None)
        return contract.of_state(checkpoint, state), checkpoint.skipped
    raise UsageError(
        "a lock is of one thing: name a module with -m package.module:Name, or a checkpoint"
    )


def _before(path: Path, *, check: bool, force: bool) -> Contract | None:
    """Return the existing lock; None if there is none, or with `force` if it need not be read.

    Raises:
        ReadError: with `check`, it does not exist; or it is invalid.
        WriteError: the file exists and is not a lock.
    """
    if check:
        if not path.exists():
            raise ReadError(path, "there is no lock: write it with `ckptool lock`, without --check")
        return lockfile.read(path)
    if not path.exists():
        return None
    if lockfile.is_lock(path):
        return None if force else lockfile.read(path)
    if not force:
        raise WriteError(
            f"{path}: exists already and is no lock: name another, or replace it with --force"
        )
    return None


def _record(
    target: Target,
    path: Location,
    golden: Path,
    inputs: object,
    tolerances: Mapping[str, float],
    force: bool,  # noqa: FBT001
    limits: Limits,
) -> report.LockReport:
    from ckptool.formats.atomic import check_target
    from ckptool.verification import golden as goldens
    from ckptool.verification import inputs as words

    known = goldens.tolerances_of(tolerances)
    sources = [path] if isinstance(path, Path) else []
    check_target(golden, sources, force=force, folder=False)
    with target.side(opened(path, limits)) as side:
        given = words.given(target.inputs if inputs is None else inputs)
        if given is None:
            asked = words.asked(side.maker.make())
            if isinstance(asked, str):
                raise UsageError(asked)
            given = asked
        words.check(side.maker.make(), given)
        content = goldens.recorded(side, given, known)
        met = side.loading
    _write(golden, content, force=force)
    now = contract.of_module(met.module)
    done = Locked(golden, now, None, same=False, check=False, golden=str(path), source=given.source)
    return locked(done, judge([], Policy()))


def _write(path: Path, content: bytes, *, force: bool = True) -> None:
    from ckptool.formats.atomic import check_target, write_file

    check_target(path, [], force=force, folder=False)
    write_file(path, content, force=force)
