"""Questions that only code of the user can answer, and the facts that answer them.

A request is answered where the user's code runs; the answer is data without code, so that it can
come from another process. What follows from it is decided by whoever asked.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.sources.file_arguments import FileArguments, read_file_arguments
from ckptool.commands.target import ModuleTarget
from ckptool.compare.contracts.contract import FixtureResult
from ckptool.compare.loader_diff import LoaderAnswer, build_loaded_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.model import Checkpoint, ModuleInfo, Skipped
from ckptool.verification.result import ForwardEffects, GoldenReplay, Verification

if TYPE_CHECKING:
    from torch import nn

    from ckptool.commands.worker.session import ModuleSession
    from ckptool.migration.plan.plan_file import Plan
    from ckptool.verification.forward_pass import Inputs
    from ckptool.verification.target import VerificationTarget

A = TypeVar("A")


class ModuleRequest(Struct, Generic[A], frozen=True):
    """A question about a module."""

    target: ModuleTarget
    answer_type: ClassVar[object]

    @property
    def activity(self) -> str:
        """What the command is at while it waits for the answer: "running package.module:Name"."""
        name = self.target.module if isinstance(self.target.module, str) else "the module"
        verb = "building" if type(self).__name__ == "DescribeModule" else "running"
        return f"{verb} {self.target.label or name}"

    def answer(self, session: "ModuleSession") -> A:
        """Run the code that answers it.

        Raises:
            CkptoolError: it cannot be answered; the message says why.
        """
        raise NotImplementedError


class ModuleFacts(Struct, frozen=True):
    """Description of a module as it was built, and what running forward did."""

    module_info: ModuleInfo
    forward_effects: tuple[ForwardEffects, ...] = ()

    def apply_effects(self, module_info: ModuleInfo | None = None) -> ModuleInfo:
        """Return the description (of this module, unless another is given) after forward."""
        result = module_info or self.module_info
        for effects in self.forward_effects:
            result = effects.apply_to(result)
        return result


class DescribeModule(ModuleRequest[ModuleFacts], frozen=True):
    """What does the module hold? With inputs, forward is run as well."""

    answer_type = ModuleFacts
    file_arguments: FileArguments = FileArguments()
    """Constructor arguments of which those are used that it accepts."""
    inputs: object = None

    def answer(self, session: "ModuleSession") -> ModuleFacts:
        module_info, _ = session.examine_module(self.target, self.file_arguments)
        return ModuleFacts(module_info, self.target.run_forward(self.file_arguments, self.inputs))


class ProbeLoad(ModuleRequest[LoaderAnswer], frozen=True):
    """What does the module's own loading code make of a state?"""

    answer_type = LoaderAnswer
    file_arguments: FileArguments
    module_diff: ModuleDiff
    """What keys and shapes say."""

    def answer(self, session: "ModuleSession") -> LoaderAnswer:
        from ckptool.verification.loading.load_probe import ask_loader

        _, module = session.examine_module(self.target, self.file_arguments)
        with self.target.enter_module_code(self.file_arguments):
            return ask_loader(self.target.make_trial(module, self.file_arguments), self.module_diff)


class OldCheckpoint(Struct, frozen=True):
    """An older checkpoint whose outputs are the reference."""

    checkpoint: Checkpoint
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None
    """Its module, live, as a class or by name; None is the current one."""


class VerifiedModule(Struct, frozen=True):
    """Results of a verification, and the facts of the comparison before it."""

    verification: Verification
    module_info: ModuleInfo
    loader_answer: LoaderAnswer
    lacks_cuda: bool
    """Whether CUDA was wanted and the CPU was taken, since there is none."""

    def build_diff(self, checkpoint: Checkpoint, at: str | None) -> ModuleDiff:
        """Return the comparison of the checkpoint with the module."""
        return build_loaded_diff(checkpoint, self.module_info, at, lambda _: self.loader_answer)


class VerifyCheckpoint(ModuleRequest[VerifiedModule], frozen=True):
    """What happens when the module loads a checkpoint and runs?"""

    answer_type = VerifiedModule
    checkpoint: Checkpoint
    device: str = "auto"
    takes_cpu_for_cuda: bool = False
    """Whether device "cuda" is the CPU where there is no CUDA."""
    inputs: object = None
    tolerance: float | None = None
    old: OldCheckpoint | None = None

    def answer(self, session: "ModuleSession") -> VerifiedModule:  # noqa: ARG002
        import torch

        from ckptool.verification import run
        from ckptool.verification.inputs import parse_inputs
        from ckptool.verification.levels import device_and_forward

        lacks_cuda = (
            self.takes_cpu_for_cuda and self.device == "cuda" and not torch.cuda.is_available()
        )
        device = device_and_forward.select_device("cpu" if lacks_cuda else self.device)
        target = self.target
        with ExitStack() as stack:
            new = stack.enter_context(target.open_verification_target(self.checkpoint))
            old = None if self.old is None else self._open_old_target(self.old, stack)
            inputs = parse_inputs(target.inputs if self.inputs is None else self.inputs)
            verification = run.run_verification(new, device, inputs, old, self.tolerance)
        module_diff = new.module_diff
        loader_answer = LoaderAnswer(
            module_diff.load_outcome,
            module_diff.unchecked_load,
            module_diff.retie_refusal,
            module_diff.loading_info,
        )
        return VerifiedModule(verification, new.module_info, loader_answer, lacks_cuda)

    def _open_old_target(self, old: OldCheckpoint, stack: ExitStack) -> "VerificationTarget":
        from ckptool.verification.target import open_verification_target

        if old.module is None:
            same_module = replace(self.target, at=None)
            return stack.enter_context(same_module.open_verification_target(old.checkpoint))
        spec = self.target.build_spec_of(old.module, read_file_arguments(old.checkpoint, {}))
        return stack.enter_context(open_verification_target(old.checkpoint, spec, None))


class CheckFixture(ModuleRequest[FixtureResult], frozen=True):
    """How does an old checkpoint get into the module?"""

    answer_type = FixtureResult
    path: Path
    plans: "Mapping[str, Plan]"
    """Migration plans by name, tried beside the one that is derived."""
    limits: Limits

    def answer(self, session: "ModuleSession") -> FixtureResult:  # noqa: ARG002
        from ckptool.commands.worker.fixtures import check_fixture

        return check_fixture(self.path, self.target, self.plans, self.limits)


class GoldenReplays(Struct, frozen=True):
    """Results of the golden files that belong to a checkpoint."""

    replays: tuple[GoldenReplay, ...]
    skipped: tuple[Skipped, ...]


class ReplayGolden(ModuleRequest[GoldenReplays], frozen=True):
    """Does the module compute what golden files recorded?"""

    answer_type = GoldenReplays
    checkpoint: Checkpoint
    paths: tuple[Path, ...]
    has_many_checkpoints: bool
    """Whether a golden file applies only to the checkpoint with its stem."""
    device: str

    def answer(self, session: "ModuleSession") -> GoldenReplays:  # noqa: ARG002
        from ckptool.commands.worker.golden_replays import replay_golden_files

        return replay_golden_files(self)


class GoldenRecording(Struct, frozen=True):
    """Content of a golden file."""

    content: bytes
    module_info: ModuleInfo
    input_source: str


class RecordGolden(ModuleRequest[GoldenRecording], frozen=True):
    """What does the module compute with a checkpoint?"""

    answer_type = GoldenRecording
    checkpoint: Checkpoint
    inputs: object
    tolerances: Mapping[str, float]

    def answer(self, session: "ModuleSession") -> GoldenRecording:  # noqa: ARG002
        from ckptool.verification import golden

        tolerances = golden.check_tolerances(self.tolerances)
        with self.target.open_verification_target(self.checkpoint) as verification_target:
            inputs = self._select_inputs(verification_target)
            content = golden.record_golden(verification_target, inputs, tolerances)
            module_info = verification_target.module_diff.module
        return GoldenRecording(content, module_info, inputs.source)

    def _select_inputs(self, verification_target: "VerificationTarget") -> "Inputs":
        from ckptool.verification import inputs as input_sources

        create_module = verification_target.factory.create_module
        inputs = input_sources.parse_inputs(
            self.target.inputs if self.inputs is None else self.inputs
        )
        if inputs is None:
            module_inputs = input_sources.inputs_from_module(create_module())
            if isinstance(module_inputs, str):
                raise UsageError(module_inputs)
            inputs = module_inputs
        input_sources.require_matching_inputs(create_module(), inputs)
        return inputs
