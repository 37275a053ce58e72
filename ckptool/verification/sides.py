"""Checkpoint x module -> VerificationTarget: the input of the levels."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from ckptool.compare import Loading, loading
from ckptool.model import Checkpoint, TensorInfo
from ckptool.modules import ModuleSpec, describe, examine
from ckptool.verification.instances import Maker, maker


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One checkpoint compared with its module, and the factory of instances."""

    loading: Loading
    maker: Maker
    beside: Mapping[str, TensorInfo] = field(default_factory=dict)
    """Tensors of a pickled module that are not in its state_dict, by key."""


@contextmanager
def side(
    checkpoint: Checkpoint, module: str | nn.Module, spec: ModuleSpec, at: str | None
) -> Iterator[Side]:
    """Context manager with the target for a live `module` or one named by `spec`.

    The module's folders are importable inside.

    Raises:
        ModuleError: it cannot be imported or built.
    """
    with maker(module, spec) as made:
        state = examine(spec) if isinstance(module, str) else describe(module, spec.target)
        met = loading(checkpoint, state, at)
        yield Side(met, made, met.state.unsaved)
