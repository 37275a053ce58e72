"""Checkpoint, module and policy -> GatedCheckpoint: all results that a gate judges."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.gating.expectations import (
    GateExpectations,
    check_expectations,
    resolve_expectations,
    targets_without_checkpoint,
)
from ckptool.commands.gating.required_verification import (
    required_level_failures,
    run_required_verification,
)
from ckptool.commands.gating.revision_facts import ChainEvidence, find_chain_evidence
from ckptool.commands.sources.checkpoint_paths import open_checkpoint_or_stdin
from ckptool.commands.sources.module_choice import ModuleOptions, find_target, is_adapter_folder
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import DescribeModule, ProbeLoad
from ckptool.commands.worker.worker import ModuleWorker, start_early
from ckptool.compare.loader_diff import AskLoader, LoaderAnswer, build_loaded_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.module_values import add_value_checks
from ckptool.compare.states import find_loaded_state, require_state_or_part
from ckptool.config import ProjectConfig, ReleaseRequirements
from ckptool.errors import ModuleError, NoStateError, ReadError
from ckptool.formats.limits import Limits
from ckptool.formats.sharded.sibling_pickles import add_sibling_uses
from ckptool.loaders.hints.folder_hint import suggest_folder
from ckptool.loaders.hints.lightning_config import suggest_cli_module
from ckptool.locations import Location
from ckptool.model import Checkpoint, ModuleInfo, Skipped
from ckptool.policy import Policy
from ckptool.reports.gate import GateEvidence
from ckptool.values.checkpoint_statistics import (
    CheckpointStatistics,
    compute_checkpoint_statistics,
)

if TYPE_CHECKING:
    from ckptool.verification.result import ForwardEffects, Verification

NO_MODULE = Skipped(
    "the module",
    "no module was given with -m or in [[tool.ckptool.models]]: only rules about the file were run",
)
NO_VALUES = Skipped("values", "--no-values: only the structure was judged")


class GatedCheckpoint(Struct, frozen=True):
    """One checkpoint of a release with its module and the results of all checks."""

    path: str
    checkpoint: Checkpoint | None
    """None if a module is checked without a checkpoint."""
    module_info: ModuleInfo | None = None
    module_diff: ModuleDiff | None = None
    forward_effects: "tuple[ForwardEffects, ...]" = ()
    verification: "Verification | None" = None
    unloadable_place: str = ""
    """Usual place of the state_dict if that does not load, and another mapping was judged."""
    required_levels: Mapping[str, str] = {}
    """Required verification level -> why it did not pass, "" if it passed."""
    evidence: GateEvidence = GateEvidence()
    statistics: CheckpointStatistics | None = None
    """None if values were not read."""
    chain: ChainEvidence | None = None
    """Place in the project's chain of migrations; None without a chain."""
    module_hint: str = ""
    """Without a module: a sentence about the configuration around the file; "" if there is none."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        entries = [*(self.checkpoint.skipped if self.checkpoint else ())]
        entries += self.evidence.skipped
        entries += self.module_info.skipped if self.module_info else [self._unexamined_module]
        entries += self.verification.skipped if self.verification else ()
        if self.checkpoint:
            entries += self.statistics.skipped if self.statistics else [NO_VALUES]
        return tuple(dict.fromkeys(entries))

    @property
    def _unexamined_module(self) -> Skipped:
        if self.checkpoint and self.checkpoint.damage:
            return Skipped(NO_MODULE.what, _describe_damage(self.checkpoint))
        return Skipped(NO_MODULE.what, f"{NO_MODULE.reason}{self.module_hint}")


def _describe_damage(checkpoint: Checkpoint) -> str:
    """Return why a damaged file is not compared with a module; "" if it is not damaged."""
    return f"reading stopped: {checkpoint.damage}" if checkpoint.damage else ""


def collect_subjects(gated_checkpoint: GatedCheckpoint) -> tuple[object, ...]:
    """Return the subjects to run rules on for one checkpoint; add new kinds of subject here."""
    candidates: tuple[object | None, ...] = (
        gated_checkpoint.checkpoint,
        gated_checkpoint.module_info,
        gated_checkpoint.module_diff,
        *gated_checkpoint.forward_effects,
        gated_checkpoint.verification,
        *gated_checkpoint.evidence.subjects,
        gated_checkpoint.statistics,
        *(gated_checkpoint.chain.subjects if gated_checkpoint.chain else ()),
    )
    return tuple(subject for subject in candidates if subject is not None)


def _find_unloadable_place(
    module_diff: ModuleDiff, module_target: ModuleTarget, ask_loader: AskLoader
) -> str:
    """Return the usual place of a state_dict ("." for the root) if that one does not load.

    "" if it is the one that was compared, if none is there, or if the user named a place.
    """
    usual_state = find_loaded_state(module_diff.checkpoint)
    if module_target.at is not None or usual_state is None or usual_state is module_diff.state:
        return ""
    place = usual_state.at or "."
    diff = build_loaded_diff(module_diff.checkpoint, module_diff.module, place, ask_loader)
    return "" if diff.is_strict else place


class CheckpointExaminer(Struct, frozen=True):
    """Runs all checks on checkpoints; describes each named module only once."""

    policy: Policy
    limits: Limits
    config: ProjectConfig
    module_options: ModuleOptions
    inputs: object
    expectations: GateExpectations
    read_values: bool
    worker: ModuleWorker
    modules_only: bool = False
    """Judge modules without checkpoints, also those that are held to nothing."""
    folder_names: Mapping[Location, frozenset[str]] = {}
    """See `NamedCheckpoints.folder_names`."""

    def examine_all(
        self, paths: Sequence[Location], *, modules: bool
    ) -> tuple[list[GatedCheckpoint], dict[str, str]]:
        """Return the results and path -> error; with `modules`, also those of modules alone."""
        gated_checkpoints: list[GatedCheckpoint] = []
        errors: dict[str, str] = {}
        for path in dict.fromkeys(paths):
            try:
                options = self.module_options
                options = options if is_adapter_folder(path) else replace(options, base=None)
                module_target = find_target(path, options, self.config)
                gated_checkpoints.append(self.examine_checkpoint(path, module_target))
            except (ReadError, ModuleError, NoStateError) as error:
                errors[str(path)] = str(error)
        if modules:
            self._examine_modules(gated_checkpoints, errors)
        return gated_checkpoints, errors

    def examine_checkpoint(
        self, path: Location, module_target: ModuleTarget | None
    ) -> GatedCheckpoint:
        """Run all checks on the checkpoint at `path` and its module.

        Raises:
            ReadError: the checkpoint cannot be read.
            ModuleError: the module cannot be built.
        """
        start_early(self.worker, module_target, path)
        require = self.policy.at(str(path)).require
        expectations = resolve_expectations(self.expectations, self.config, path)
        limits = replace(self.limits, contents=expectations.against is not None, search_remote=True)
        checkpoint = self._open_checkpoint(path, limits)
        statistics = compute_checkpoint_statistics(checkpoint) if self.read_values else None
        if module_target is None or checkpoint.damage:
            file_only = self._examine_file(path, checkpoint, expectations, require)
            return replace(file_only, statistics=statistics)
        file_arguments = module_target.read_file_arguments(checkpoint)
        facts = self.worker.ask(DescribeModule(module_target, file_arguments, self.inputs))
        module_info, forward_effects = facts.apply_effects(), facts.forward_effects

        def ask_loader(diff: ModuleDiff) -> LoaderAnswer:
            return self.worker.ask(ProbeLoad(module_target, file_arguments, diff))

        module_diff = build_loaded_diff(checkpoint, module_info, module_target.at, ask_loader)
        unloadable_place = _find_unloadable_place(module_diff, module_target, ask_loader)
        module_diff = add_value_checks(module_diff) if self.read_values else module_diff
        verification, required_levels = run_required_verification(
            checkpoint, module_target, require, self.inputs, self.worker
        )
        evidence = check_expectations(
            expectations, checkpoint, module_info, module_target, self.limits, self.worker
        )
        return GatedCheckpoint(
            str(path),
            checkpoint,
            module_diff.module,
            module_diff,
            forward_effects,
            verification,
            unloadable_place,
            required_levels,
            evidence,
            statistics,
            find_chain_evidence(
                self.config, module_target, path, checkpoint, module_info, module_diff.state
            ),
        )

    def _examine_file(
        self,
        path: Location,
        checkpoint: Checkpoint,
        expectations: GateExpectations,
        require: ReleaseRequirements,
    ) -> GatedCheckpoint:
        """Run the checks that need no module; the levels that the policy requires fail."""
        if self.module_options.at is not None and not checkpoint.damage:
            require_state_or_part(checkpoint, self.module_options.at)
        return GatedCheckpoint(
            str(path),
            checkpoint,
            module_hint=suggest_cli_module(path) or suggest_folder(path),
            required_levels=required_level_failures(
                require, None, _describe_damage(checkpoint) or "no module was given for it"
            ),
            evidence=check_expectations(
                expectations, checkpoint, None, None, self.limits, self.worker
            ),
            chain=find_chain_evidence(self.config, None, path, checkpoint, None),
        )

    def _open_checkpoint(self, path: Location, limits: Limits) -> Checkpoint:
        """Describe a checkpoint; the first of a folder with what else is in the folder.

        Raises:
            ReadError: it cannot be read.
        """
        checkpoint = open_checkpoint_or_stdin(path, limits, self.module_options.loader)
        if path not in self.folder_names:
            return checkpoint
        return add_sibling_uses(checkpoint, path.parent, limits, self.folder_names[path])

    def _examine_modules(
        self, gated_checkpoints: list[GatedCheckpoint], errors: dict[str, str]
    ) -> None:
        """Check the named module, or the configured ones, and add results and errors.

        Raises:
            ReadError, ModuleError: the named module cannot be checked; of several that the
                configuration names, the others are.
            UsageError: there is none that could be checked.
        """
        module_targets = targets_without_checkpoint(
            self.expectations,
            self.module_options.target,
            self.config,
            modules_only=self.modules_only,
        )
        for module_target, expectations in module_targets:
            try:
                gated_checkpoints.append(self.examine_module(module_target, expectations))
            except (ReadError, ModuleError) as error:
                if len(module_targets) == 1:
                    raise
                errors[str(module_target.module)] = str(error)

    def examine_module(
        self, module_target: ModuleTarget, expectations: GateExpectations
    ) -> GatedCheckpoint:
        """Check a module against its expectations, without a checkpoint.

        Raises:
            ReadError: a lock or an old checkpoint cannot be read.
            ModuleError: the module cannot be built.
        """
        module_info = self.worker.ask(DescribeModule(module_target)).module_info
        evidence = check_expectations(
            expectations, None, module_info, module_target, self.limits, self.worker
        )
        chain = find_chain_evidence(self.config, module_target, None, None, module_info)
        return GatedCheckpoint(
            module_info.target, None, module_info, evidence=evidence, chain=chain
        )
