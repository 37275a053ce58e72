"""Operation: one step of a plan, as data; `apply` maps a Draft to the next Draft.

An operation never touches bytes. A draft has the location of every tensor's elements, so renaming,
dropping and injecting change descriptions only; `tensor_bytes.py` produces the bytes afterwards.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from msgspec import Struct

from ckptool.errors import PlanError
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.torch_arithmetic import TensorFunction
from ckptool.model import TensorInfo

if TYPE_CHECKING:
    from ckptool.migration.plan.key_operations import InjectTensor


class OperationContext(Protocol):
    """Data that operations may request: the module's tensors, injected values, products."""

    @property
    def expected(self) -> Mapping[str, TensorInfo] | None:
        """State_dict tensors of the module by key; None without a module."""

    def locate_value(self, op: "InjectTensor", draft: Draft) -> TensorInfo:
        """Return the description of the tensor that `op` injects, with the span of its elements.

        Raises:
            PlanError: the source has no such value, or none that is reproducible.
        """

    def compute_tensor(
        self,
        step: str,
        key: str,
        function: TensorFunction,
        tensors: tuple[TensorInfo, ...],
        dim: int = 0,
    ) -> TensorInfo:
        """Return the description of what `function` makes of the tensors, stored as `key`.

        Args:
            step: operation and key, for error messages.
            key: of the result.
            function: of torch_arithmetic.
            tensors: of the draft, in the order of the function's arguments.
            dim: of a norm.

        Raises:
            PlanError: a tensor cannot be read, or torch cannot compute it.
        """


class IrreversibleError(PlanError):
    """The operation has no inverse: the result lacks the information."""


class Operation(Struct, frozen=True, kw_only=True, tag_field="op", omit_defaults=True,
                forbid_unknown_fields=True):  # fmt: skip
    """One step of a plan. The tag of the subclass is its name in a plan file."""

    why: str = ""
    """Comment for readers of the plan; has no effect."""
    assumption: str = ""
    """What the step assumes without proof; "" if it is proved, or written by hand."""
    data_loss: ClassVar[str] = ""
    """Information of the source that the result lacks; "" for none."""

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        """Return the draft after this step.

        Raises:
            PlanError: the step matches no key, or is refused.
        """
        raise NotImplementedError

    def build_inverse(self) -> "Operation":
        """Return the operation that undoes this one.

        Raises:
            IrreversibleError: the operation has no inverse.
        """
        raise NotImplementedError

    @property
    def before_after_text(self) -> tuple[str, str]:
        """Text for the source and for the result, as in a table row; "-" for no key."""
        raise NotImplementedError


class _EmptyContext:
    """Context without module and sources, for operations that request nothing."""

    expected = None

    def locate_value(self, op: "InjectTensor", draft: Draft) -> TensorInfo:
        raise PlanError(f"inject `{op.key}`: {len(draft.items)} keys and no sources")

    def compute_tensor(
        self,
        step: str,
        key: str,
        function: TensorFunction,
        tensors: tuple[TensorInfo, ...],
        dim: int = 0,
    ) -> TensorInfo:
        raise PlanError(f"{step}: {key}: {function.__name__} of {len(tensors)} tensors, dim {dim}")


EMPTY_CONTEXT: OperationContext = _EmptyContext()
