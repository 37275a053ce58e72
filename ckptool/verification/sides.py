"""A checkpoint and the name of its module -> Side: what the levels work with."""

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
    """One checkpoint and its module."""

    loading: Loading
    maker: Maker
    beside: Mapping[str, TensorInfo] = field(default_factory=dict)
    """What a pickled module held beside its state_dict."""


@contextmanager
def side(
    checkpoint: Checkpoint, module: str | nn.Module, spec: ModuleSpec, at: str | None
) -> Iterator[Side]:
    """Give the side of `module`, or of what `spec` names; its code stays importable meanwhile.

    Raises:
        ModuleError: it cannot be imported or built.
    """
    with maker(module, spec) as made:
        state = examine(spec) if isinstance(module, str) else describe(module, spec.target)
        met = loading(checkpoint, state, at)
        yield Side(met, made, met.state.unsaved)
