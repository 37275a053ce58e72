"""Plan x draft -> HookTrace: what each step finds, so that code can be written for it."""

from collections.abc import Mapping

from msgspec import Struct

from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.migration.plan.operation import OperationContext
from ckptool.migration.plan.plan_file import Op, Plan
from ckptool.model import TensorInfo
from ckptool.values.elements import iter_elements

MAX_INLINE_NUMEL = 64
"""Elements of an injected value that are written into the code."""


class InlineValue(Struct, frozen=True):
    """An injected value that is small enough to be written as code."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes
    """The elements in C order, little-endian."""


class TracedStep(Struct, frozen=True):
    """One operation, and the state that it finds."""

    number: int
    """From 1."""
    op: Op
    keys: tuple[str, ...]
    """Keys before it."""


class HookTrace(Struct, frozen=True):
    """A plan, with what its steps found in one old state."""

    steps: tuple[TracedStep, ...]
    values: Mapping[str, InlineValue]
    """Key of an injected tensor -> its value; without those that are too large."""
    is_recognizable: bool
    """Whether keys and shapes tell an old state from an upgraded one."""
    has_versions: bool
    """Whether the old state has the versions of its modules, as torch.save keeps them."""


def trace_plan(plan: Plan, draft: Draft, context: OperationContext) -> HookTrace:
    """Apply a plan step by step and record what each step finds.

    Raises:
        PlanError: a step does not apply.
    """
    steps: list[TracedStep] = []
    values: dict[str, InlineValue] = {}
    before = _describe_forms(draft)
    has_versions = draft.versions is not None
    for number, op in enumerate(plan.ops, 1):
        keys = (*draft.items, *draft.non_tensor_keys)
        steps.append(TracedStep(number, op, keys))
        if isinstance(op, InjectTensor):
            tensor = context.locate_value(op, draft)
            if tensor.numel <= MAX_INLINE_NUMEL:
                values[op.key] = InlineValue(tensor.dtype, tensor.shape, _read_content(tensor))
        draft = op.apply(draft, context)
    return HookTrace(tuple(steps), values, before != _describe_forms(draft), has_versions)


def _describe_forms(draft: Draft) -> Mapping[str, tuple[int, ...]]:
    """Return the keys and their shapes."""
    return {key: item.tensor.shape for key, item in draft.items.items()} | dict.fromkeys(
        draft.non_tensor_keys, (-1,)
    )


def _read_content(tensor: TensorInfo) -> bytes:
    return b"".join(map(bytes, iter_elements(tensor))) if tensor.numel else b""
