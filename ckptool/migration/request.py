"""MigrationRequest, the container that it is for, and MigrationResult."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import UsageError
from ckptool.formats.files.source import is_directory
from ckptool.formats.files.writer import ProgressCallback
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location
from ckptool.migration.check.plan_outcome import PlanOutcome
from ckptool.migration.check.strict_load import CheckResult, ForwardCheck
from ckptool.migration.hook.hook_trace import HookTrace
from ckptool.migration.plan.container_limits import SAFETENSORS, TORCH
from ckptool.migration.plan.conversion import ConversionScope, TreeChange
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.plan.suggest import PlanChoices
from ckptool.migration.write.provenance import MigrationDigests, RevisionStamp
from ckptool.model import Checkpoint, Container, IssueKind, ModuleInfo, StateDict, TensorInfo

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule

_CONTAINER_BY_SUFFIX: Final = {
    ".safetensors": SAFETENSORS, ".pth": TORCH, ".pt": TORCH, ".ckpt": TORCH, ".bin": TORCH,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """Source, target, plan and options of a migration."""

    source: Location
    target: Path | None
    """None for a dry run without a target."""
    module: "Callable[[Checkpoint], TargetModule] | None" = None
    """Returns the module for the opened checkpoint."""
    at: str | None = None
    into: str = ""
    """Path of the sub-module that alone is meant, "" for the whole module."""
    to: str | None = None
    plan: Plan | None = None
    """None: derive the plan."""
    plan_name: str = ""
    """Path of the plan file, for error messages; "" without one."""
    reverse: bool = False
    choices: PlanChoices = field(default_factory=PlanChoices)
    can_confirm_renames: bool = False
    """Whether `forward_check` compares the outputs with those of the old module."""
    donor: Location | None = None
    drop_extra: bool = False
    """Whether the state is written alone, without what lies around it in the source."""
    conversion: ConversionScope | None = None
    """What is written around the state, of a conversion; None for a migration."""
    force: bool = False
    dry_run: bool = False
    check_trace: Callable[[HookTrace], None] | None = None
    """Called before anything is written with a trace of the plan, which the result then has;
    raises a PlanError if no hook can be made of it. None for no trace."""
    save_plan: Path | None = None
    hook_files: tuple[Path, ...] = ()
    """Files that the caller writes when the result is complete."""
    max_shard_size: int | None = None
    hard_links: bool = True
    record_provenance: bool = True
    stamp: RevisionStamp | None = None
    """Place of the result in a chain of migrations, which its record gets; None without a chain."""
    recorded_plan: Plan | None = None
    """Plan as the record has it; None for `plan`."""
    follows_chain: bool = False
    """Whether `plan` is the steps of a chain of migrations: keys in between need not be those of
    the module, and equal steps of two revisions are not one plan that is applied already."""
    limits: Limits = DEFAULT_LIMITS
    progress: ProgressCallback = lambda _: None
    forward_check: ForwardCheck | None = None
    check_plan: Callable[[PlanOutcome], None] = lambda _: None
    """Called before anything is written; raises a PlanError to refuse the plan."""

    @property
    def is_sharded(self) -> bool:
        """Whether the result is a folder of shards.

        True if a shard size is given, or if the source is sharded and neither the target's suffix
        nor `to` names a container.
        """
        if self.max_shard_size is not None:
            return True
        is_source_sharded = is_directory(self.source) or self.source.suffix == ".json"
        has_file_suffix = (
            self.target is not None and self.target.suffix.lower() in _CONTAINER_BY_SUFFIX
        )
        is_merged = self.conversion is not None and self.conversion.merges_shards
        keeps_container = self.to is None or self.conversion is not None
        return is_source_sharded and not has_file_suffix and not is_merged and keeps_container

    @property
    def writes_state_alone(self) -> bool:
        """Whether the result is a state_dict, and nothing that lies around it in the source."""
        return self.drop_extra or (self.conversion is not None and self.conversion.is_state_alone)


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """Outcome of a migration, or of its dry run."""

    checkpoint: Checkpoint
    state: StateDict
    module_info: ModuleInfo | None
    plan: Plan
    to: str
    target: Path | None
    diff: ModuleDiff | None
    """The result compared with the module; None without a module."""
    checks: tuple[CheckResult, ...]
    digests: MigrationDigests | None
    """None if nothing was written."""
    notes: tuple[str, ...]
    state_changed: bool
    """Whether the state_dict of the result differs from the source's."""
    already_applied: bool
    """Whether the source already has this plan applied, by its provenance."""

    container: Container
    """Container of the result."""
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    """Tensors of the result, by key."""
    is_alone: bool = False
    """Whether the result is a state alone, as asked."""
    omitted: tuple[TreeChange, ...] = ()
    """States and entries of the source that the container cannot hold, or that were not asked for.
    """
    tree_changes: tuple[TreeChange, ...] = ()
    """Values that the result lacks, or has in another form, as weights_only=True refuses them."""
    trace: HookTrace | None = None
    """What the steps of the plan found, if that was asked for."""
    stripped_places: tuple[str, ...] = ()
    """Places of the source that were stripped, as asked."""
    refused_globals: tuple[str, ...] = ()
    """Globals that the result keeps and `torch.load` refuses by default (weights_only=True)."""

    @property
    def is_converted(self) -> bool:
        """Whether the state_dict or the container differs from the source's, or is repaired."""
        is_repaired = self.checkpoint.load_refusal or any(
            issue.kind is IssueKind.COMPRESSED for issue in self.checkpoint.faults
        )
        is_other_container = self.checkpoint.container is not self.container
        return self.state_changed or is_other_container or bool(is_repaired)


def choose_output_container(request: MigrationRequest) -> str:
    """Return SAFETENSORS or TORCH, by --to or the suffix of the target.

    Raises:
        UsageError: the target names no container, or is a folder that is there already.
    """
    suffix = request.target.suffix.lower() if request.target else ".safetensors"
    container = request.to or _CONTAINER_BY_SUFFIX.get(suffix)
    if request.is_sharded:
        if request.target is not None and suffix in _CONTAINER_BY_SUFFIX:
            hint = "" if request.follows_chain else "; --to pth or safetensors chooses its files"
            raise UsageError(
                f"-o {request.target}: a sharded checkpoint is a folder: give it without a "
                f"suffix{hint}"
            )
        return container or SAFETENSORS
    if container is None and request.target is not None and request.target.is_dir():
        name = f"{Path(request.source.name).stem}.safetensors"
        raise UsageError(f"-o {request.target}: is a folder: give a file in it, for example {name}")
    if container is None and str(request.target) == "-":
        raise UsageError("-o -: a checkpoint cannot be written to standard output: give a file")
    if container is None:
        suffixes_text = ", ".join(_CONTAINER_BY_SUFFIX)
        remedy = "add one" if request.follows_chain else "choose --to safetensors or --to pth"
        raise UsageError(
            f"-o {request.target}: its suffix does not determine the format ({suffixes_text}): "
            f"{remedy}"
        )
    return container


def get_result_container(request: MigrationRequest, to: str) -> Container:
    """Return the container of the result."""
    if request.is_sharded and to == TORCH:
        return Container.SHARDED_TORCH
    if request.is_sharded:
        return Container.SHARDED_SAFETENSORS
    return Container.SAFETENSORS if to == SAFETENSORS else Container.TORCH_ZIP
