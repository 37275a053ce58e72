"""MigrationRequest -> MigrationResult and the file: describe, plan, dry run, write, verify."""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckptool.compare import Loading, best_state, matching_as_well, state_at, unmet
from ckptool.errors import PlanError, ReadError, UsageError, WriteError
from ckptool.formats import open_checkpoint
from ckptool.formats.atomic import check_target, failing
from ckptool.formats.blobs import Progress
from ckptool.formats.files import is_directory, open_source
from ckptool.formats.interrupts import interruptible
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.formats.safetensors_writer import CODES
from ckptool.locations import Location, RemotePath
from ckptool.migration import ties
from ckptool.migration import write as writing
from ckptool.migration.ahead import Ahead
from ckptool.migration.companions import companions, is_web
from ckptool.migration.draft import Draft, draft_of
from ckptool.migration.fits import check_fits
from ckptool.migration.inflate import inflated
from ckptool.migration.memory import Memory
from ckptool.migration.plan import Plan, apply, reverse
from ckptool.migration.plan import write as plan_text
from ckptool.migration.prints import Prints
from ckptool.migration.provenance import KEY, SUFFIX, Digests, applied
from ckptool.migration.questions import UndecidedError
from ckptool.migration.sources import Sources
from ckptool.migration.suggest import Wishes, outcome, suggest
from ckptool.migration.verify import Check, Proof, Written, verify
from ckptool.migration.watch import Watch
from ckptool.migration.write import SAFETENSORS, TORCH, Job
from ckptool.model import Checkpoint, Container, ModuleState, State

if TYPE_CHECKING:
    from torch import nn

    from ckptool.migration.live import Live
    from ckptool.modules import ModuleSpec

_SUFFIXES = {
    ".safetensors": SAFETENSORS, ".pth": TORCH, ".pt": TORCH, ".ckpt": TORCH, ".bin": TORCH,
}  # fmt: skip


_RECORD: Final = 16 << 20
"""Maximum size in bytes of the record file beside a .pth."""


@dataclass(frozen=True, slots=True)
class Request:
    """Source, target, plan and options of a migration."""

    source: Location
    target: Path | None
    """None for a dry run without a target."""
    module: "Callable[[Checkpoint], ModuleSpec | nn.Module] | None" = None
    """Returns the module or its spec for the opened checkpoint."""
    at: str | None = None
    to: str | None = None
    plan: Plan | None = None
    """None: derive the plan."""
    plan_name: str = ""
    """Path of the plan file, for error messages; "" without one."""
    reverse: bool = False
    wishes: Wishes = field(default_factory=Wishes)
    donor: Location | None = None
    drop_extra: bool = False
    force: bool = False
    dry_run: bool = False
    save_plan: Path | None = None
    max_shard_size: int | None = None
    links: bool = True
    recorded: bool = True
    limits: Limits = DEFAULT
    progress: Progress = lambda _: None
    proof: Proof | None = None

    @property
    def folder(self) -> bool:
        """Whether the result is a folder of shards.

        True if a shard size is given, or if the source is sharded and neither the target's suffix
        nor `to` names a container.
        """
        if self.max_shard_size is not None:
            return True
        several = is_directory(self.source) or self.source.suffix == ".json"
        named = self.target is not None and self.target.suffix.lower() in _SUFFIXES
        return several and not named and self.to is None


@dataclass(frozen=True, slots=True)
class Migration:
    """Outcome of a migration, or of its dry run."""

    checkpoint: Checkpoint
    state: State
    module: ModuleState | None
    plan: Plan
    to: str
    target: Path | None
    loading: Loading | None
    """The result compared with the module; None without a module."""
    checks: tuple[Check, ...]
    digests: Digests | None
    """None if nothing was written."""
    notes: tuple[str, ...]
    changed: bool
    """Whether the state_dict of the result differs from the source's."""
    again: bool
    """Whether the source already has this plan applied, by its provenance."""

    container: Container
    """Container of the result."""

    @property
    def converted(self) -> bool:
        """Whether the state_dict or the container differs from the source's."""
        return self.changed or self.checkpoint.container is not self.container


def run(request: Request) -> Migration:
    """Run a migration: describe, plan, apply, write, read back, verify.

    Raises:
        ReadError: the source cannot be read.
        ModuleError: the module cannot be built.
        PlanError: the plan is undecided, or cannot be applied.
        WriteError: the result could not be completed; the target is unchanged.
        UsageError: the options of the request contradict each other.
    """
    to = _container(request)
    with interruptible(), Memory() as memory, Prints() as prints, Ahead() as ahead:
        return _run(request, to, memory, prints, ahead)


def _run(request: Request, to: str, memory: Memory, prints: Prints, ahead: Ahead) -> Migration:
    watch = Watch()
    indexed = request.source.name.endswith(".json") or request.source.name == ".metadata"
    if isinstance(request.source, Path):
        watch.add(request.source.parent if indexed else request.source)
    _check_target(request, watch)
    checkpoint = _opened(request, memory)
    if isinstance(request.source, RemotePath):
        for file in checkpoint.files or (checkpoint.path,):
            watch.add(file)
    _begin(request, to, checkpoint, prints, ahead)
    live = _live(request, checkpoint)
    module = live.state if live else None
    draft = ties.with_ties_restored(draft_of(checkpoint, _state(checkpoint, module, request)))
    sources = Sources(live, request.donor, memory, watch, request.limits)
    plan = _plan(request, draft, module, sources)
    again = applied(plan, _record(draft))
    result = draft if again else apply(plan.ops, draft, sources, request.plan_name)
    met = outcome(result, module, alone=to == SAFETENSORS) if module else None
    notes = check_fits(result, to, drop_extra=request.drop_extra)
    if module and request.at is None:
        same = matching_as_well(checkpoint, module, draft.state)
        places = ", ".join(f"`{at}`" for at in same)
        also = f"{places} matches as well as `{draft.state.at or '.'}`: --at takes it instead"
        notes = (*notes, also) if same else notes
    if request.folder and (along := companions(checkpoint)):
        notes = (*notes, f"copied along: {', '.join(file.name for file in along)}")
    if request.folder and is_web(checkpoint.path):
        notes = (*notes, "what lies beside the shards is not copied: http cannot list it")
    _save_plan(request, plan_text(plan))
    changed = result is not draft or result.items.keys() != result.state.tensors.keys()
    changed = changed or result.state.role == "module"
    left = unmet(met) if met else ""
    done = _Done(request, to, plan, result, live, watch, prints, ahead, changed, left)
    checks, digests = ((), None) if request.dry_run else done.write()
    return Migration(
        checkpoint=checkpoint,
        state=result.state,
        module=module,
        plan=Plan() if again else plan,
        to=to,
        target=request.target,
        loading=met,
        checks=checks,
        digests=digests,
        notes=notes,
        changed=changed,
        again=again,
        container=_kind(request, to),
    )


def _opened(request: Request, memory: Memory) -> Checkpoint:
    checkpoint = open_checkpoint(request.source, request.limits)
    if checkpoint.damage:
        raise PlanError(f"{checkpoint.path}: is not migrated: {checkpoint.damage}")
    return inflated(checkpoint, memory, request.limits)


def _begin(request: Request, to: str, checkpoint: Checkpoint, prints: Prints, ahead: Ahead) -> None:
    """Start plan-independent work (copying, fingerprints) while torch is imported."""
    if request.target is None or request.dry_run or request.folder or len(checkpoint.states) != 1:
        return
    state = checkpoint.states[0]
    room = writing.room_for(state)
    if (
        to == SAFETENSORS
        and room
        and all(t.dtype in CODES and t.span for t in state.tensors.values())
    ):
        items, _ = ties.split_ties(draft_of(checkpoint, state))
        tensors = [items[one.key].tensor for one in writing.stored(items)]
        ahead.start(
            tensors, room, request.target,
            force=request.force, recorded=request.recorded, busy=_imports_torch(request),
            progress=request.progress,
        )  # fmt: skip
    elif request.recorded:
        prints.start(state)


def _imports_torch(request: Request) -> bool:
    """Return whether building the module imports torch, which starves threads for a second."""
    return request.module is not None and "torch" not in sys.modules


def _container(request: Request) -> str:
    suffix = request.target.suffix.lower() if request.target else ".safetensors"
    found = request.to or _SUFFIXES.get(suffix)
    if request.folder:
        if found == TORCH or suffix in _SUFFIXES:
            raise UsageError(
                f"-o {request.target}: a checkpoint in several files is a folder of safetensors: "
                "name it without a suffix, and leave --to pth out"
            )
        return SAFETENSORS
    if found is None and request.target is not None and request.target.is_dir():
        name = f"{Path(request.source.name).stem}.safetensors"
        raise UsageError(
            f"-o {request.target}: is a folder: name the file in it, for example {name}"
        )
    if found is None and str(request.target) == "-":
        raise UsageError("-o -: a checkpoint is not written to standard output: name a file")
    if found is None:
        known = ", ".join(_SUFFIXES)
        raise UsageError(
            f"-o {request.target}: its suffix names no container ({known}): "
            "say which with --to safetensors or --to pth"
        )
    return found


def _kind(request: Request, to: str) -> Container:
    if request.folder:
        return Container.SHARDED_SAFETENSORS
    return Container.SAFETENSORS if to == SAFETENSORS else Container.TORCH_ZIP


def _check_target(request: Request, watch: Watch) -> None:
    if request.target is None:
        if not request.dry_run:
            raise UsageError("no destination is named: -o DST, or --dry-run to see the plan only")
        return
    if request.dry_run:
        return
    inputs = [p for p in (request.source, request.donor) if isinstance(p, Path)]
    check_target(
        request.target, [*inputs, *watch.files], force=request.force, folder=request.folder
    )


def _live(request: Request, checkpoint: Checkpoint) -> "Live | None":
    if request.module is None:
        return None
    from ckptool.migration.live import live

    return live(request.module(checkpoint))


def _state(checkpoint: Checkpoint, module: ModuleState | None, request: Request) -> State:
    """Return the state_dict to migrate: at `request.at`, else the best match, else the only one."""
    if request.at is not None:
        state = state_at(checkpoint, request.at)
    elif module is not None:
        state = best_state(checkpoint, module)
    else:
        states = [s for s in checkpoint.states if s.role != "optimizer"] or [*checkpoint.states]
        models = [s for s in states if s.role != "tensors"] or states
        places = ", ".join(f"`{s.at or '.'}`" for s in models)
        if len(models) > 1:
            raise PlanError(f"{checkpoint.path}: has states at {places}: name one with --at")
        state = models[0] if models else State("", {})
    if not state.tensors and not state.unsaved:
        raise PlanError(f"{checkpoint.path}: there are no tensors at `{state.at or '.'}`")
    return state


def _plan(request: Request, draft: Draft, module: ModuleState | None, sources: Sources) -> Plan:
    """Return the plan of the request, or derive one.

    Raises:
        PlanError: no plan can be derived; `--save-plan` then gets the open decisions.
        UsageError: the request has both a plan and key overrides.
    """
    if request.plan is None:
        try:
            return suggest(draft, module, sources, request.wishes)
        except UndecidedError as error:
            raise _with_way_out(error, request) from error
    if request.wishes != Wishes():
        raise UsageError(
            "--plan is the whole plan: write what --inject and --drop ask for into it, as steps"
        )
    return reverse(request.plan) if request.reverse else request.plan


def _record(draft: Draft) -> str | None:
    path = draft.checkpoint.path
    beside = path.with_name(path.name + SUFFIX)
    try:
        if found := draft.checkpoint.metadata.get(KEY):
            return found
        with open_source(beside) as source:
            return source.head(_RECORD).decode()
    except (ReadError, UnicodeDecodeError):
        return None


def _with_way_out(error: UndecidedError, request: Request) -> PlanError:
    """Save the derived steps with the open decisions as comments; return the error with a hint."""
    if request.save_plan is None:
        way = "--save-plan FILE writes the plan so far, with all that is open, to be edited"
    else:
        _save_plan(request, error.draft)
        way = (
            f"the plan so far is in {request.save_plan}, with all that is open in comments: "
            f"decide it there, and come back with --plan {shlex.quote(str(request.save_plan))}"
        )
    return PlanError(f"{error}; {way}")


def _save_plan(request: Request, text: str) -> None:
    if request.save_plan is None:
        return
    with failing(request.save_plan):
        if request.save_plan.exists() and not request.force:
            raise WriteError(f"{request.save_plan}: exists already: replace it with --force")
        request.save_plan.write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Done:
    """A draft with its plan applied, ready to write."""

    request: Request
    to: str
    plan: Plan
    result: Draft
    live: "Live | None"
    watch: Watch
    prints: Prints
    ahead: Ahead
    changed: bool
    unmet: str

    def write(self) -> tuple[tuple[Check, ...], Digests]:
        request, checks = self.request, list[Check]()
        assert request.target is not None

        def look(path: Path) -> None:
            checks.extend(verify(self._written(path, request.target), self.live, request.proof))

        job = Job(
            self.result, self.plan, request.target, self.to, request.force, request.recorded,
            self.changed, request.limits, request.progress, self.watch.check, look,
            self.ahead.prints if self.ahead.out else self.prints.of, self.ahead, request.links,
        )  # fmt: skip
        if request.folder:
            from ckptool.migration.folder import write_folder

            digests = write_folder(job, request.max_shard_size)
        else:
            digests = writing.write(job)
        return tuple(checks), digests

    def _written(self, path: Path, target: Path | None) -> Written:
        tied: Mapping[str, str] = {}
        if self.to == SAFETENSORS:
            tied = ties.split_ties(self.result)[1]
        # A pickled module at the root becomes a state_dict at the root.
        safetensors = self.to == SAFETENSORS
        return Written(path, target or path, safetensors, self.result.state.at, tied, self.unmet)
