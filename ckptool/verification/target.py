"""Checkpoint x module -> VerificationTarget: the input of the levels."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ckptool.compare.module_diff import ModuleDiff
from ckptool.loaders.describe import describe_for_loader
from ckptool.model import Checkpoint, ModuleInfo, TensorInfo
from ckptool.modules import ModuleSpec, examine_and_build
from ckptool.verification.load_probe import compare_with_loader
from ckptool.verification.module_factory import ModuleFactory, open_module_factory
from ckptool.verification.trial.trial_module import make_trial


@dataclass(frozen=True, slots=True, eq=False)
class VerificationTarget:
    """One checkpoint compared with its module, and the factory of instances."""

    module_info: ModuleInfo
    module_diff: ModuleDiff
    factory: ModuleFactory
    pickled_tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    """Tensors of a pickled module that are not in its state_dict, by key."""


@contextmanager
def open_verification_target(
    checkpoint: Checkpoint, spec: ModuleSpec, at: str | None
) -> Iterator[VerificationTarget]:
    """Context manager with the target for the module of `spec`.

    The module's folders are importable inside.

    Raises:
        ModuleError: it cannot be imported or built.
    """
    with open_module_factory(spec) as factory:
        module_info, instance = examine_and_build(spec)
        module_info = describe_for_loader(module_info, instance, spec)
        module_diff = compare_with_loader(checkpoint, module_info, make_trial(instance, spec), at)
        yield VerificationTarget(
            module_info, module_diff, factory, module_diff.state.unsaved_tensors
        )
