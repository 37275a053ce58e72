"""Operations on keys: data with a method `apply` (Draft -> Draft).

An operation never touches bytes. A draft has the location of every tensor's elements, so renaming,
dropping and injecting change descriptions only; `tensor_bytes.py` produces the bytes afterwards.
"""

import re
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.states import get_state
from ckptool.errors import PlanError, RenameRefusedError
from ckptool.migration.plan.draft import (
    Draft,
    PlannedTensor,
    create_draft,
    key_suggestion,
    match_keys,
    rename_keys,
)
from ckptool.migration.plan.torch_arithmetic import TensorFunction
from ckptool.model import TensorInfo


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


class InjectTensor(Operation, frozen=True, kw_only=True, tag="inject"):
    """Add the tensor `key` with the value from `source`."""

    key: str
    source: str
    """"attribute", "attribute:PATH", "constructor", "file:PATH#KEY", "npz:PATH#KEY",
    "literal:VALUE", "seed:N" or "zeros"."""
    dtype: str = ""
    """Dtype of a literal; a value from another source must have it. Default: the module's."""
    shape: tuple[int, ...] | None = None
    """Shape that the value must have. Default: the module's."""

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        if self.key in draft.items or self.key in draft.non_tensor_keys:
            raise PlanError(f"inject `{self.key}`: the file has that key already")
        value = context.locate_value(self, draft)
        return replace(draft, items={**draft.items, self.key: PlannedTensor(value)})

    def build_inverse(self) -> Operation:
        return DropKeys(key=self.key, why=f"{self.source} was injected here")

    @property
    def before_after_text(self) -> tuple[str, str]:
        dtype_text = f" {self.dtype}" if self.dtype else ""
        return "-", f"{self.key}{dtype_text}{'' if self.shape is None else list(self.shape)}"


RenameMode = Literal["exact", "prefix", "regex"]
"""How `RenameKeys` matches and renames keys."""


class RenameKeys(Operation, frozen=True, kw_only=True, tag="rename"):
    """Rename a key; `how` may be prefix, or regex with a template.

    Refused (CK221): a key that the module has, a target that the module does not have, and a
    target of another shape.
    """

    key: str
    to: str
    how: RenameMode = "exact"
    """"exact"; "prefix": keys that start with `key`; "regex": `to` is the replacement template."""

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        new_keys = {
            key: new
            for key in (*draft.items, *draft.non_tensor_keys)
            if (new := self._rename_key(key))
        }
        if not new_keys:
            raise PlanError(
                f"rename `{self.key}`: nothing in the file is called"
                f" so{key_suggestion(draft, self.key)}"
            )
        for key, new in new_keys.items():
            self._check_rename(key, new, draft, context.expected)
        result = rename_keys(draft, lambda key: new_keys.get(key, key), self._rename_module_prefix)
        return result if self.how != "exact" else self._copy_version(result)

    def build_inverse(self) -> Operation:
        if self.how == "regex":
            raise IrreversibleError(f"rename `{self.key}`: a regular expression has no reverse")
        return RenameKeys(key=self.to, to=self.key, how=self.how)

    @property
    def before_after_text(self) -> tuple[str, str]:
        suffix = {"exact": "", "prefix": "*", "regex": " (regex)"}[self.how]
        return f"{self.key}{suffix}", f"{self.to}{suffix}"

    def _rename_key(self, key: str) -> str:
        if self.how == "exact":
            return self.to if key == self.key else ""
        if self.how == "prefix":
            return self.to + key.removeprefix(self.key) if key.startswith(self.key) else ""
        try:
            new = re.sub(self.key, self.to, key)
        except re.error as error:
            raise PlanError(f"rename `{self.key}`: is no regular expression: {error}") from error
        return new if new != key else ""

    def _check_rename(
        self, key: str, new: str, draft: Draft, expected: Mapping[str, TensorInfo] | None
    ) -> None:
        if reason := self._find_refusal(key, new, draft, expected):
            raise RenameRefusedError(key, new, reason)

    def _find_refusal(
        self, key: str, new: str, draft: Draft, expected: Mapping[str, TensorInfo] | None
    ) -> str:
        if new in draft.items or new in draft.non_tensor_keys:
            return f"the file has `{new}` already"
        if expected is None or key not in draft.items:
            return ""
        if key in expected:
            return f"the module has `{key}`"
        if new not in expected:
            return f"the module has no `{new}`"
        actual_shape, expected_shape = draft.items[key].tensor.shape, expected[new].shape
        return (
            ""
            if actual_shape == expected_shape
            else f"it is {list(actual_shape)} and the module has {list(expected_shape)} there"
        )

    def _rename_module_prefix(self, prefix: str) -> str:
        """Rename a module prefix (a key of the versions) like the tensor keys below it."""
        if self.how == "exact" or not prefix:
            return prefix
        return (self._rename_key(f"{prefix}.") or f"{prefix}.").removesuffix(".")

    def _copy_version(self, draft: Draft) -> Draft:
        versions, old, new = draft.versions, _get_owner(self.key), _get_owner(self.to)
        if versions is None or old not in versions or new in versions:
            return draft
        return replace(draft, versions={**versions, new: versions[old]})


def _get_owner(key: str) -> str:
    return key.rpartition(".")[0]


class DropKeys(Operation, frozen=True, kw_only=True, tag="drop"):
    """Remove `key`, or all keys that match it as a glob."""

    key: str
    data_loss: ClassVar[str] = "the values of what is dropped"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        dropped_keys = {*match_keys(draft, self.key), *({self.key} & draft.non_tensor_keys.keys())}
        if not dropped_keys:
            raise PlanError(
                f"drop `{self.key}`: nothing in the file is called"
                f" so{key_suggestion(draft, self.key)}"
            )
        return replace(
            draft,
            items={key: item for key, item in draft.items.items() if key not in dropped_keys},
            non_tensor_keys={
                key: source_key
                for key, source_key in draft.non_tensor_keys.items()
                if key not in dropped_keys
            },
        )

    def build_inverse(self) -> Operation:
        raise IrreversibleError(f"drop `{self.key}`: its value is not in the result")

    @property
    def before_after_text(self) -> tuple[str, str]:
        return self.key, "-"


class StripPrefix(Operation, frozen=True, kw_only=True, tag="strip-prefix"):
    """Remove `prefix` from the keys, repeatedly; with `anywhere` also inside keys."""

    prefix: str
    anywhere: bool = False
    times: int = 0
    """Maximum number of removals per key; 0 for no limit."""

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        prefix = _check_whole_segments(self.prefix)
        if all(self._strip_key(key) == key for key in (*draft.items, *draft.non_tensor_keys)):
            raise PlanError(f"strip-prefix `{prefix}`: no key has it")
        return rename_keys(draft, self._strip_key, self._strip_module_prefix)

    def build_inverse(self) -> Operation:
        if self.anywhere:
            raise IrreversibleError(f"strip-prefix `{self.prefix}`: where it stood is not recorded")
        return AddPrefix(prefix=self.prefix, why="on the assumption that every key had it")

    @property
    def before_after_text(self) -> tuple[str, str]:
        return (f"*{self.prefix}*", "**") if self.anywhere else (f"{self.prefix}*", "*")

    def _strip_key(self, key: str) -> str:
        if self.anywhere:
            stripped_segment = self.prefix.removesuffix(".")
            *owners, last = key.split(".")
            return ".".join([*(segment for segment in owners if segment != stripped_segment), last])
        max_times = self.times or len(key)
        while max_times and key.startswith(self.prefix) and key != self.prefix:
            key, max_times = key.removeprefix(self.prefix), max_times - 1
        return key

    def _strip_module_prefix(self, prefix: str) -> str:
        return self._strip_key(f"{prefix}._").removesuffix("_").removesuffix(".") if prefix else ""


class AddPrefix(Operation, frozen=True, kw_only=True, tag="add-prefix"):
    """Prepend `prefix` to every key."""

    prefix: str

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        prefix = _check_whole_segments(self.prefix)
        root_prefix = prefix.removesuffix(".")
        return rename_keys(
            draft,
            lambda key: prefix + key,
            lambda module: prefix + module if module else root_prefix,
        )

    def build_inverse(self) -> Operation:
        return StripPrefix(prefix=self.prefix, times=1)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return "*", f"{self.prefix}*"


def _check_whole_segments(prefix: str) -> str:
    if not prefix.endswith(".") or prefix == ".":
        raise PlanError(f"prefix `{prefix}`: only whole segments can be changed: write `{prefix}.`")
    return prefix


class ExtractState(Operation, frozen=True, kw_only=True, tag="extract"):
    """Continue with the state_dict at `at` in the file, or only with the keys below `prefix`."""

    at: str = ""
    prefix: str = ""
    data_loss: ClassVar[str] = "everything around it"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        if self.at:
            state = get_state(draft.checkpoint, self.at)
            if not state.tensors:
                state_paths = ", ".join(f"`{s.at or '.'}`" for s in draft.checkpoint.states)
                raise PlanError(
                    f"extract `{self.at}`: no tensors are there; there are {state_paths}"
                )
            draft = create_draft(draft.checkpoint, state)
        return self._keep_prefix(draft) if self.prefix else draft

    def build_inverse(self) -> Operation:
        raise IrreversibleError("extract: what lay around it is not in the result")

    @property
    def before_after_text(self) -> tuple[str, str]:
        return f"{self.at} {self.prefix}*".strip(), "*"

    def _keep_prefix(self, draft: Draft) -> Draft:
        prefix = _check_whole_segments(self.prefix)
        items = {key: item for key, item in draft.items.items() if key.startswith(prefix)}
        non_tensor_keys = {
            key: source_key
            for key, source_key in draft.non_tensor_keys.items()
            if key.startswith(prefix)
        }
        inner_draft = replace(draft, items=items, non_tensor_keys=non_tensor_keys)
        if draft.versions is not None:
            inner_versions = {p: v for p, v in draft.versions.items() if f"{p}.".startswith(prefix)}
            inner_draft = replace(inner_draft, versions=inner_versions)
        return StripPrefix(prefix=prefix).apply(inner_draft, EMPTY_CONTEXT)


class _EmptyContext:
    """Context without module and sources, for operations that request nothing."""

    expected = None

    def locate_value(self, op: InjectTensor, draft: Draft) -> TensorInfo:
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
