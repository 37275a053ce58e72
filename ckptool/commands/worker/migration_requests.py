"""Questions of a migration to the module that loads its result, and to that of the source."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import DescribeModule, ModuleRequest, ProbeLoad
from ckptool.commands.worker.worker import ModuleWorker
from ckptool.compare.loader_diff import LoaderAnswer
from ckptool.compare.module_diff import ModuleDiff
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.migration.plan.target_module import ModuleValue, StrictLoad, TargetModule
from ckptool.model import Checkpoint
from ckptool.verification.result import LevelStatus, Verification, VerificationLevel

if TYPE_CHECKING:
    from torch import nn

    from ckptool.commands.worker.session import ModuleSession
    from ckptool.migration.check.local_module import LocalModule
    from ckptool.verification.target import VerificationTarget


def load_target_module(
    worker: ModuleWorker, target: ModuleTarget, checkpoint: Checkpoint
) -> TargetModule:
    """Return the module that loads the result of a migration, described as a whole.

    Raises:
        ModuleError: the module cannot be imported, built or examined.
    """
    whole_target = replace(target, into="")
    file_arguments = target.read_file_arguments(checkpoint)
    module_info = worker.ask(DescribeModule(whole_target, file_arguments)).module_info
    source = WorkerModule(worker, whole_target, file_arguments)
    return TargetModule(replace(module_info, own_load_error=""), source)


class WorkerModule(Struct, frozen=True):
    """A module that a worker has built: a `ModuleSource`."""

    worker: ModuleWorker
    target: ModuleTarget
    file_arguments: FileArguments

    def ask_loader(self, module_diff: ModuleDiff) -> LoaderAnswer:
        """Ask its own loading code about the state of `module_diff`."""
        return self.worker.ask(ProbeLoad(self.target, self.file_arguments, module_diff))

    def read_value(self, key: str, seed: int | None) -> ModuleValue:
        """Return the value that building gives to `key`; with `seed`, of a build under it.

        Raises:
            PlanError: the module saves no such tensor, or building gives it no value.
        """
        return self.worker.ask(ReadModuleValue(self.target, self.file_arguments, key, seed))

    def load_strictly(self, pending_file: PendingFile, submodule: str) -> StrictLoad:
        """Load a file into a copy of the module, or of its sub-module at a path that is not ""."""
        request = LoadPendingFile(self.target, self.file_arguments, pending_file, submodule)
        return self.worker.ask(request)


class ReadModuleValue(ModuleRequest[ModuleValue], frozen=True):
    """What value does building the module give to a key?"""

    answer_type = ModuleValue
    file_arguments: FileArguments
    key: str
    seed: int | None

    def answer(self, session: "ModuleSession") -> ModuleValue:
        return _get_local_module(session, self.target, self.file_arguments).read_value(
            self.key, self.seed
        )


class LoadPendingFile(ModuleRequest[StrictLoad], frozen=True):
    """Does the module load the file that was written?"""

    answer_type = StrictLoad
    file_arguments: FileArguments
    pending_file: PendingFile
    submodule: str

    def answer(self, session: "ModuleSession") -> StrictLoad:
        module = _get_local_module(session, self.target, self.file_arguments)
        with self.target.enter_module_code(self.file_arguments):
            return module.load_strictly(self.pending_file, self.submodule)


def _get_local_module(
    session: "ModuleSession", target: ModuleTarget, file_arguments: FileArguments
) -> "LocalModule":
    from ckptool.migration.check.local_module import LocalModule

    module_info, module = session.examine_module(target, file_arguments)
    return LocalModule(
        module, module_info.target, target.build_spec(file_arguments), module_info.loader
    )


class MigratedRun(Struct, frozen=True):
    """Verification of a migrated file before it has its name."""

    verification: Verification
    unconfirmed_keys: tuple[str, ...] = ()
    """Keys to confirm whose values the outputs do not depend on."""


class RunOptions(Struct, frozen=True):
    """How a migrated file is run, and compared with the source in its old module."""

    source: Checkpoint
    donor: Checkpoint | None
    """File with the old module's pickled attributes, if the source lacks them."""
    old_module: "str | nn.Module | Callable[..., nn.Module] | None"
    inputs: object
    device: str
    tolerance: float | None
    limits: Limits

    def open_old_target(
        self, stack: ExitStack, target: ModuleTarget, file_arguments: FileArguments
    ) -> "VerificationTarget | None":
        """Return the source with its old module, open until `stack` is closed; None without one.

        Raises:
            ModuleError: the old module cannot be imported or built.
        """
        from dataclasses import replace as replace_field

        from ckptool.verification.target import open_verification_target

        if self.old_module is None:
            return None
        spec = target.build_spec_of(self.old_module, file_arguments)
        old = stack.enter_context(open_verification_target(self.source, spec, target.at))
        if self.donor is None:
            return old
        donor_attributes = {
            key: tensor
            for state in self.donor.states
            for key, tensor in state.unsaved_tensors.items()
        }
        return replace_field(old, pickled_tensors=donor_attributes | dict(old.pickled_tensors))


class CheckedOptions(Struct, frozen=True):
    """The options of a run are valid: the old module was built, and the inputs were made."""

    device: str


class CheckRunOptions(ModuleRequest[CheckedOptions], frozen=True):
    """Could a migrated file be run as the options ask? Nothing is written or run for it."""

    answer_type = CheckedOptions
    options: RunOptions

    def answer(self, session: "ModuleSession") -> CheckedOptions:  # noqa: ARG002
        from ckptool.modules.import_target import prepend_search_paths
        from ckptool.verification.inputs import parse_inputs
        from ckptool.verification.levels import device_and_forward

        device = device_and_forward.select_device(self.options.device)
        file_arguments = self.target.read_file_arguments(self.options.source)
        spec = self.target.build_spec(file_arguments)
        with ExitStack() as stack, prepend_search_paths(spec):
            self.options.open_old_target(stack, self.target, file_arguments)
            parse_inputs(self.options.inputs)
        return CheckedOptions(str(device))


class RunMigrated(ModuleRequest[MigratedRun], frozen=True):
    """What does the module compute with a migrated file, and the old module with the source?"""

    answer_type = MigratedRun
    pending_file: PendingFile
    options: RunOptions

    def answer(self, session: "ModuleSession") -> MigratedRun:  # noqa: ARG002
        from ckptool.verification import run
        from ckptool.verification.inputs import parse_inputs
        from ckptool.verification.levels import device_and_forward
        from ckptool.verification.loading.rename_confirmation import find_unconfirmed_keys
        from ckptool.verification.target import open_verification_target

        options = self.options
        device = device_and_forward.select_device(options.device)
        file_arguments = self.target.read_file_arguments(options.source)
        with ExitStack() as stack:
            new = stack.enter_context(
                open_verification_target(
                    open_checkpoint(self.pending_file.path, options.limits),
                    self.target.build_spec(file_arguments),
                    self.pending_file.at,
                )
            )
            old = options.open_old_target(stack, self.target, file_arguments)
            # Here the project's folders are on sys.path: a function that makes inputs is in them.
            inputs = parse_inputs(options.inputs)
            verification = run.run_verification(new, device, inputs, old, options.tolerance)
            keys = self.pending_file.keys_to_confirm
            equality = verification.find_level(VerificationLevel.EQUALITY)
            if not keys or equality.status is not LevelStatus.PASSED:
                return MigratedRun(verification)
            return MigratedRun(verification, tuple(find_unconfirmed_keys(new, inputs, keys)))
