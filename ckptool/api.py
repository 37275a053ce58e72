"""One function per command, with the same words as its options; the CLI adds only printing."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool import report, reporting
from ckptool.compare import Loading, loading, revision
from ckptool.config import Config, load_config
from ckptool.errors import ReadError, UsageError
from ckptool.formats import open_checkpoint, open_stream
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.model import Checkpoint, ModuleState
from ckptool.policy import Policy, judge, known_codes
from ckptool.rules import RULES, run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from ckptool.migration.plan import Plan
    from ckptool.migration.verify import Check, Proof, Written
    from ckptool.modules import ModuleSpec
    from ckptool.verification.facts import Exercise
    from ckptool.verification.sides import Side

PathLike = str | Path


def inspect(
    paths: PathLike | Sequence[PathLike],
    *,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
) -> report.InspectReport:
    """Describe checkpoints: what they hold and name, without loading or executing anything.

    A path that cannot be read is reported in `errors`, and the others are described all the same.
    """
    checkpoints: list[Checkpoint] = []
    errors: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            checkpoints.append(_open(path, limits))
        except ReadError as error:
            errors.append(str(error))
    verdict = judge(run(checkpoints), policy or Policy())
    return reporting.inspected(tuple(checkpoints), verdict, tuple(errors))


def diff(
    path: PathLike,
    new: PathLike | None = None,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    explain: str | None = None,
    values: bool = True,
    inputs: object = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
) -> report.DiffModuleReport | report.DiffFilesReport:
    """Compare a checkpoint with the module that should load it, or with another checkpoint.

    Args:
        path: the checkpoint; the old one of two.
        new: the newer checkpoint; without it, the checkpoint is compared with a module.
        module: "package.module:Name" or a live module; without it the configuration names one.
        kwargs: constructor arguments.
        at: place of the state in the file ("state_dict"); without it the best match is taken.
        explain: a key of which everything is to be told.
        values: whether two files' values are compared.
        inputs: as for `verify`: with them the module is run, and what that shows is reported.
        policy: which findings are reported, and from which level on they fail.
        limits: bounds on what a file may cost.
        config: the configuration; without it the nearest one from the current directory up.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the options do not go together.
    """
    if new is not None:
        if module is not None:
            raise UsageError(
                "-m names a module for one checkpoint; with two checkpoints leave it out"
            )
        before, after = _open(path, limits), _open(new, limits)
        changed = revision(before, after, at, look_at_values=values)
        found = judge(run([changed]), policy or Policy(), differs=changed.differs)
        return reporting.revised(changed, found, explain)
    checkpoint = _open(path, limits)
    wanted = _wanted(Path(path), module, kwargs, at, config)
    hyper = {} if wanted.kwargs else hyper_parameters(checkpoint)
    state = _examine(wanted.module, wanted.kwargs, hyper, wanted.search)
    state, seen = _exercised(wanted, hyper, state, inputs)
    met = loading(checkpoint, state, wanted.at)
    found = judge(run([met, state, checkpoint, *seen]), policy or Policy(), differs=not met.strict)
    return reporting.loaded(met, found, _notes(met, wanted.at, hyper), explain)


def migrate(  # noqa: PLR0913
    source: PathLike,
    target: PathLike | None = None,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    to: str | None = None,
    plan: "PathLike | Plan | None" = None,
    reverse: bool = False,
    inject: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    from_: PathLike | None = None,
    drop_extra: bool = False,
    force: bool = False,
    dry_run: bool = False,
    save_plan: PathLike | None = None,
    max_shard_size: int | None = None,
    links: bool = True,
    provenance: bool = True,
    inputs: object = None,
    device: str = "auto",
    old_module: "str | nn.Module | None" = None,
    progress: Callable[[int], None] = lambda _: None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
) -> report.MigrateReport:
    """Write a checkpoint that a module loads strictly, or with `dry_run` only say how.

    Args:
        source: the checkpoint; it is never written to.
        target: where the result goes; complete at its name, or not there.
        module: "package.module:Name" or a live module; without it the configuration names one, or
            none is used: then the state is converted, and nothing is derived.
        kwargs: constructor arguments.
        at: place of the state in the file ("state_dict"); without it the best match is taken.
        to: "safetensors" or "pth"; without it the target's suffix decides.
        plan: a plan, or a file with one; without it the plan is derived.
        reverse: undo the plan.
        inject: key -> where its value comes from: "attribute", "constructor", "file:PATH#KEY",
            "npz:PATH#KEY", "literal:VALUE", "seed:N" or "zeros".
        drop: keys to leave out.
        from_: a pickled module, or another file, whose attributes are looked at as well.
        drop_extra: leave out what the container cannot hold.
        force: replace an existing target.
        dry_run: write nothing.
        save_plan: where to write the plan.
        max_shard_size: bytes of one file of a folder.
        links: whether files of a folder that do not change may be hard links to the source's.
        provenance: record the plan and the digests with the result.
        inputs: what forward takes, as for `verify`: the result is then run before it is placed.
        device: where it is run.
        old_module: the module of the source, which then has to compute the same.
        progress: told how many bytes have just been written.
        policy: which findings about the result are reported.
        limits: bounds on what a file may cost.
        config: the configuration; without it the nearest one from the current directory up.

    Raises:
        ReadError: the source cannot be read.
        ModuleError: the module cannot be imported or built.
        PlanError: something cannot be decided, or the plan does not fit.
        WriteError: the result could not be completed; the target is as it was.
        UsageError: the options do not go together.
    """
    from ckptool.migration.plan import read_file
    from ckptool.migration.run import Request
    from ckptool.migration.run import run as run_migration
    from ckptool.migration.suggest import Wishes

    wanted = _wanted_or_none(Path(source), module, kwargs, at, config)
    done = run_migration(
        Request(
            source=Path(source),
            target=None if target is None else Path(target),
            module=partial(_migrated_module, wanted) if wanted else None,
            at=wanted.at if wanted else at,
            to=to,
            plan=read_file(Path(plan)) if isinstance(plan, str | Path) else plan,
            reverse=reverse,
            wishes=Wishes(inject or {}, tuple(drop)),
            donor=None if from_ is None else Path(from_),
            drop_extra=drop_extra,
            force=force,
            dry_run=dry_run,
            save_plan=None if save_plan is None else Path(save_plan),
            max_shard_size=max_shard_size,
            links=links,
            recorded=provenance,
            limits=limits,
            progress=progress,
            proof=_proof(Path(source), wanted, inputs, device, old_module, limits),
        )
    )
    met = [] if done.loading is None else [done.loading]
    differs = any(not one.strict for one in met)
    return reporting.migrated(done, judge(run(met), policy or Policy(), differs=differs))


def verify(
    path: PathLike,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    device: str = "auto",
    against: PathLike | None = None,
    old_module: "str | nn.Module | None" = None,
    inputs: object = None,
    tolerance: float | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
) -> report.VerifyReport:
    """Load a checkpoint, run its module, and compare it with what it was before.

    Args:
        path: the checkpoint.
        module: "package.module:Name" or a live module; without it the configuration names one.
        kwargs: constructor arguments.
        at: place of the state in the file ("state_dict"); without it the best match is taken.
        device: "auto", "cuda", "cuda:1", "simulated" or "cpu".
        against: the old checkpoint, whose module has to compute the same.
        old_module: the module of `against`; without it the same one.
        inputs: what forward takes: words such as "float32[2,6,3]", or "package.module:function",
            or the values themselves; without it the configuration or the module says so.
        tolerance: absolute and relative, across devices; without it that of the dtype.
        policy: which findings are reported, and from which level on they fail.
        limits: bounds on what a file may cost.
        config: the configuration; without it the nearest one from the current directory up.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: a module cannot be imported or built.
        UsageError: no module is named, there is no such device, or the inputs make no sense.
    """
    from ckptool.verification import levels, running
    from ckptool.verification.inputs import given

    settings = config or load_config(Path.cwd())
    wanted = _wanted(Path(path), module, kwargs, at, settings)
    where = running.choose(device)
    with ExitStack() as stack:
        new = stack.enter_context(_side(_open(path, limits), wanted))
        old = None
        if against is not None:
            # Of the new module's arguments, the old one gets those that it knows.
            older = replace(wanted, module=old_module or wanted.module, at=None)
            old = stack.enter_context(
                _side(_open(against, limits), older, fitting=old_module is not None)
            )
        taken = given(wanted.inputs if inputs is None else inputs)
        done = levels.verify(new, where, taken, old, tolerance)
    found = judge(run([done]), policy or Policy(), differs=bool(done.failed))
    return reporting.verified(done, new.loading.state.at, found, _notes(new.loading, wanted.at, {}))


def audit(
    module: "str | nn.Module | None" = None,
    *,
    kwargs: Mapping[str, object] | None = None,
    inputs: object = None,
    policy: Policy | None = None,
) -> report.AuditReport:
    """Report everything a module holds that a state_dict does not; with `inputs`, by running it.

    Raises:
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the inputs make no sense.
    """
    if module is None:
        raise UsageError("no module is named: -m package.module:Name")
    wanted = _Wanted(module, kwargs or {}, None, ())
    state = _examine(module, wanted.kwargs, {}, ())
    state, seen = _exercised(wanted, {}, state, inputs)
    return reporting.audited(state, judge(run([state, *seen]), policy or Policy()))


def rule(code: str | None = None) -> tuple[report.RuleReport, ...]:
    """Return what the rule `code`, a family ("CK2"), or every rule means and how to fix it.

    Raises:
        UsageError: there is no such code.
    """
    codes = known_codes(code) if code else tuple(RULES)
    return tuple(
        report.RuleReport(
            code=r.code, name=r.name, level=r.level.word, why=r.why, fix=r.fix, message=r.message
        )
        for r in sorted((RULES[c] for c in codes), key=lambda r: r.code)
    )


def _open(path: PathLike, limits: Limits) -> Checkpoint:
    """Describe the checkpoint at `path`; "-" is standard input."""
    if str(path) == "-":
        return open_stream(sys.stdin.buffer, limits)
    return open_checkpoint(Path(path), limits)


class _Wanted(Struct, frozen=True):
    """Which module a checkpoint is compared with, and how it is built."""

    module: "str | nn.Module"
    kwargs: Mapping[str, object]
    at: str | None
    search: tuple[Path, ...]
    inputs: tuple[str, ...] = ()


def _wanted(
    path: Path,
    module: "str | nn.Module | None",
    kwargs: Mapping[str, object] | None,
    at: str | None,
    config: Config | None,
) -> _Wanted:
    """Return the module that was named, or the one the configuration names for `path`."""
    if module is not None:
        return _Wanted(module, kwargs or {}, at, ())
    settings = config or load_config(Path.cwd())
    entry = settings.entry(path)
    if entry is None:
        raise UsageError(_no_module(path))
    return _Wanted(
        entry.module,
        {**entry.kwargs, **(kwargs or {})},
        at if at is not None else entry.at,
        (settings.directory,),
        entry.inputs,
    )


def _wanted_or_none(
    path: Path,
    module: "str | nn.Module | None",
    kwargs: Mapping[str, object] | None,
    at: str | None,
    config: Config | None,
) -> _Wanted | None:
    """Return what `_wanted` does; None where no module is named anywhere."""
    settings = config or load_config(Path.cwd())
    if module is None and settings.entry(path) is None:
        return None
    return _wanted(path, module, kwargs, at, settings)


def _migrated_module(wanted: _Wanted, checkpoint: Checkpoint) -> "ModuleSpec | nn.Module":
    """Return the live module, or its name, with the checkpoint's own arguments where they fit."""
    from ckptool.modules import ModuleSpec

    if not isinstance(wanted.module, str):
        return wanted.module
    hyper = {} if wanted.kwargs else hyper_parameters(checkpoint)
    return ModuleSpec(wanted.module, wanted.kwargs, (Path.cwd(), *wanted.search), hyper)


def _no_module(path: Path) -> str:
    return (
        f"{path}: no module to compare it with. Name one with -m package.module:Name, or in "
        "[[tool.ckptool.models]] of pyproject.toml or ckptool.toml, or give a second checkpoint"
    )


def hyper_parameters(checkpoint: Checkpoint) -> Mapping[str, object]:
    """Return a Lightning checkpoint's own constructor arguments, where they are plain data."""
    for entry in checkpoint.entries:
        if entry.at == "hyper_parameters" and isinstance(entry.value, dict):
            return {k: v for k, v in entry.value.items() if isinstance(k, str)}
    return {}


def _examine(
    module: "str | nn.Module",
    kwargs: Mapping[str, object],
    defaults: Mapping[str, object],
    search: tuple[Path, ...],
) -> ModuleState:
    from ckptool.modules import ModuleSpec, describe, examine

    if isinstance(module, str):
        spec = ModuleSpec(module, kwargs, (Path.cwd(), *search), defaults)
        return examine(spec)
    return describe(module, type(module).__qualname__)


def _exercised(
    wanted: _Wanted, hyper: Mapping[str, object], state: ModuleState, inputs: object
) -> "tuple[ModuleState, tuple[Exercise, ...]]":
    """Run the module where there are inputs, and return what that adds to its state."""
    if inputs is None:
        return state, ()
    from ckptool.verification.exercise import exercise, informed
    from ckptool.verification.inputs import given
    from ckptool.verification.instances import maker

    spec = _spec(wanted, wanted.kwargs, hyper)
    with maker(wanted.module, spec) as made:
        found = exercise(made, given(inputs))
    return informed(state, found), (found,)


def _proof(
    source: Path,
    wanted: _Wanted | None,
    inputs: object,
    device: str,
    old_module: "str | nn.Module | None",
    limits: Limits,
) -> "Proof | None":
    """Return what runs a migrated file, and the source in its old module; None without inputs."""
    if wanted is None or inputs is None:
        return None
    from ckptool.migration.proof import prove
    from ckptool.verification import levels, running
    from ckptool.verification.inputs import given
    from ckptool.verification.sides import side

    where, taken = running.choose(device), given(inputs)

    def proof(written: "Written") -> "Check":
        before, after = _open(source, limits), open_checkpoint(written.path, limits)
        hyper = {} if wanted.kwargs else hyper_parameters(before)
        spec = _spec(wanted, wanted.kwargs, hyper)
        with ExitStack() as stack:
            new = stack.enter_context(side(after, wanted.module, spec, written.at))
            old = None
            if old_module is not None:
                older = replace(wanted, module=old_module)
                fits = _spec(older, {}, {**hyper, **wanted.kwargs})
                old = stack.enter_context(side(before, old_module, fits, wanted.at))
            return prove(written, levels.verify(new, where, taken, old))

    return proof


def _spec(
    wanted: _Wanted, kwargs: Mapping[str, object], defaults: Mapping[str, object]
) -> "ModuleSpec":
    from ckptool.modules import ModuleSpec

    if not isinstance(wanted.module, str):
        return ModuleSpec(type(wanted.module).__qualname__)
    return ModuleSpec(wanted.module, kwargs, (Path.cwd(), *wanted.search), defaults)


def _side(
    checkpoint: Checkpoint, wanted: _Wanted, *, fitting: bool = False
) -> "AbstractContextManager[Side]":
    """Return what verifying needs of a module; with `fitting`, arguments that fit are enough."""
    from ckptool.verification.sides import side

    hyper = hyper_parameters(checkpoint) if fitting or not wanted.kwargs else {}
    if fitting:
        spec = _spec(wanted, {}, {**hyper, **wanted.kwargs})
    else:
        spec = _spec(wanted, wanted.kwargs, hyper)
    return side(checkpoint, wanted.module, spec, wanted.at)


def _notes(found: Loading, at: str | None, hyper: Mapping[str, object]) -> tuple[str, ...]:
    notes: list[str] = []
    if at is None and (found.state.at or len(found.checkpoint.states) > 1):
        others = [s.at or "." for s in found.checkpoint.states if s is not found.state]
        beside = f"; the file also has {', '.join(others[:3])}" if others else ""
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(f"compared at `{found.state.at or '.'}`, the best match{beside}{more}")
    if hyper:
        notes.append(f"constructor arguments that fit were taken from the file: {', '.join(hyper)}")
    return tuple(notes)
