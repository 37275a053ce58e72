"""Operations on keys: data with a method `apply` (Draft -> Draft).

An operation never touches bytes. A draft has the location of every tensor's elements, so renaming,
dropping and injecting change descriptions only; `tensor_bytes.py` produces the bytes afterwards.
"""

import re
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare import state_at
from ckptool.errors import PlanError, RenameRefusedError
from ckptool.migration.draft import Draft, Item, draft_of, matching, near, renamed
from ckptool.model import TensorInfo


class Facts(Protocol):
    """Data that operations may request: the module's tensors, injected values, products."""

    @property
    def expected(self) -> Mapping[str, TensorInfo] | None:
        """State_dict tensors of the module by key; None without a module."""

    def value(self, op: "Inject", draft: Draft) -> TensorInfo:
        """Return the description of the tensor that `op` injects, with the span of its elements.

        Raises:
            PlanError: the source has no such value, or none that is reproducible.
        """

    def product(self, key: str, one: TensorInfo, other: TensorInfo) -> TensorInfo:
        """Return the description of the elementwise product, stored as tensor `key`.

        Raises:
            PlanError: a tensor cannot be read, or dtype or shape differ.
        """


class IrreversibleError(PlanError):
    """The operation has no inverse: the result lacks the information."""


class Operation(Struct, frozen=True, kw_only=True, tag_field="op", omit_defaults=True,
                forbid_unknown_fields=True):  # fmt: skip
    """One step of a plan. The tag of the subclass is its name in a plan file."""

    why: str = ""
    """Comment for readers of the plan; has no effect."""
    loses: ClassVar[str] = ""
    """Information of the source that the result lacks; "" for none."""

    def apply(self, draft: Draft, facts: Facts) -> Draft:
        """Return the draft after this step.

        Raises:
            PlanError: the step matches no key, or is refused.
        """
        raise NotImplementedError

    def reversed(self) -> "Operation":
        """Return the operation that undoes this one.

        Raises:
            IrreversibleError: the operation has no inverse.
        """
        raise NotImplementedError

    @property
    def words(self) -> tuple[str, str]:
        """Text for the source and for the result, as in a table row; "-" for no key."""
        raise NotImplementedError


class Inject(Operation, frozen=True, kw_only=True, tag="inject"):
    """Add the tensor `key` with the value from `source`."""

    key: str
    source: str
    """"attribute", "attribute:PATH", "constructor", "file:PATH#KEY", "npz:PATH#KEY",
    "literal:VALUE", "seed:N" or "zeros"."""
    dtype: str = ""
    """Dtype of a literal; a value from another source must have it. Default: the module's."""
    shape: tuple[int, ...] | None = None
    """Shape that the value must have. Default: the module's."""

    def apply(self, draft: Draft, facts: Facts) -> Draft:
        if self.key in draft.items or self.key in draft.others:
            raise PlanError(f"inject `{self.key}`: the file has that key already")
        value = facts.value(self, draft)
        return replace(draft, items={**draft.items, self.key: Item(value)})

    def reversed(self) -> Operation:
        return Drop(key=self.key, why=f"{self.source} was injected here")

    @property
    def words(self) -> tuple[str, str]:
        form = f" {self.dtype}" if self.dtype else ""
        return "-", f"{self.key}{form}{'' if self.shape is None else list(self.shape)}"


How = Literal["exact", "prefix", "regex"]
"""How `RenameKeys` matches and renames keys."""


class Rename(Operation, frozen=True, kw_only=True, tag="rename"):
    """Rename a key; `how` may be prefix, or regex with a template.

    Refused (CK221): a key that the module has, a target that the module does not have, and a
    target of another shape.
    """

    key: str
    to: str
    how: How = "exact"
    """"exact"; "prefix": keys that start with `key`; "regex": `to` is the replacement template."""

    def apply(self, draft: Draft, facts: Facts) -> Draft:
        moved = {key: new for key in (*draft.items, *draft.others) if (new := self._new(key))}
        if not moved:
            raise PlanError(
                f"rename `{self.key}`: nothing in the file is called so{near(draft, self.key)}"
            )
        for key, new in moved.items():
            self._check(key, new, draft, facts.expected)
        result = renamed(draft, lambda key: moved.get(key, key), self._module)
        return result if self.how != "exact" else self._with_version(result)

    def reversed(self) -> Operation:
        if self.how == "regex":
            raise IrreversibleError(f"rename `{self.key}`: a regular expression has no reverse")
        return Rename(key=self.to, to=self.key, how=self.how)

    @property
    def words(self) -> tuple[str, str]:
        mark = {"exact": "", "prefix": "*", "regex": " (regex)"}[self.how]
        return f"{self.key}{mark}", f"{self.to}{mark}"

    def _new(self, key: str) -> str:
        if self.how == "exact":
            return self.to if key == self.key else ""
        if self.how == "prefix":
            return self.to + key.removeprefix(self.key) if key.startswith(self.key) else ""
        try:
            new = re.sub(self.key, self.to, key)
        except re.error as error:
            raise PlanError(f"rename `{self.key}`: is no regular expression: {error}") from error
        return new if new != key else ""

    def _check(
        self, key: str, new: str, draft: Draft, expected: Mapping[str, TensorInfo] | None
    ) -> None:
        if reason := self._reason(key, new, draft, expected):
            raise RenameRefusedError(key, new, reason)

    def _reason(
        self, key: str, new: str, draft: Draft, expected: Mapping[str, TensorInfo] | None
    ) -> str:
        if new in draft.items or new in draft.others:
            return f"the file has `{new}` already"
        if expected is None or key not in draft.items:
            return ""
        if key in expected:
            return f"the module has `{key}`"
        if new not in expected:
            return f"the module has no `{new}`"
        have, want = draft.items[key].tensor.shape, expected[new].shape
        return "" if have == want else f"it is {list(have)} and the module has {list(want)} there"

    def _module(self, prefix: str) -> str:
        """Rename a module prefix (a key of the versions) like the tensor keys below it."""
        if self.how == "exact" or not prefix:
            return prefix
        return (self._new(f"{prefix}.") or f"{prefix}.").removesuffix(".")

    def _with_version(self, draft: Draft) -> Draft:
        versions, old, new = draft.versions, _owner(self.key), _owner(self.to)
        if versions is None or old not in versions or new in versions:
            return draft
        return replace(draft, versions={**versions, new: versions[old]})


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


class Drop(Operation, frozen=True, kw_only=True, tag="drop"):
    """Remove `key`, or all keys that match it as a glob."""

    key: str
    loses: ClassVar[str] = "the values of what is dropped"

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        gone = {*matching(draft, self.key), *({self.key} & draft.others.keys())}
        if not gone:
            raise PlanError(
                f"drop `{self.key}`: nothing in the file is called so{near(draft, self.key)}"
            )
        return replace(
            draft,
            items={key: item for key, item in draft.items.items() if key not in gone},
            others={key: origin for key, origin in draft.others.items() if key not in gone},
        )

    def reversed(self) -> Operation:
        raise IrreversibleError(f"drop `{self.key}`: its value is not in the result")

    @property
    def words(self) -> tuple[str, str]:
        return self.key, "-"


class StripPrefix(Operation, frozen=True, kw_only=True, tag="strip-prefix"):
    """Remove `prefix` from the keys, repeatedly; with `anywhere` also inside keys."""

    prefix: str
    anywhere: bool = False
    times: int = 0
    """Maximum number of removals per key; 0 for no limit."""

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        prefix = _whole_segments(self.prefix)
        if all(self._without(key) == key for key in (*draft.items, *draft.others)):
            raise PlanError(f"strip-prefix `{prefix}`: no key has it")
        return renamed(draft, self._without, self._module)

    def reversed(self) -> Operation:
        if self.anywhere:
            raise IrreversibleError(f"strip-prefix `{self.prefix}`: where it stood is not recorded")
        return AddPrefix(prefix=self.prefix, why="on the assumption that every key had it")

    @property
    def words(self) -> tuple[str, str]:
        return (f"*{self.prefix}*", "**") if self.anywhere else (f"{self.prefix}*", "*")

    def _without(self, key: str) -> str:
        if self.anywhere:
            gone = self.prefix.removesuffix(".")
            *owners, last = key.split(".")
            return ".".join([*(segment for segment in owners if segment != gone), last])
        most = self.times or len(key)
        while most and key.startswith(self.prefix) and key != self.prefix:
            key, most = key.removeprefix(self.prefix), most - 1
        return key

    def _module(self, prefix: str) -> str:
        return self._without(f"{prefix}._").removesuffix("_").removesuffix(".") if prefix else ""


class AddPrefix(Operation, frozen=True, kw_only=True, tag="add-prefix"):
    """Prepend `prefix` to every key."""

    prefix: str

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        prefix = _whole_segments(self.prefix)
        bare = prefix.removesuffix(".")
        return renamed(
            draft, lambda key: prefix + key, lambda module: prefix + module if module else bare
        )

    def reversed(self) -> Operation:
        return StripPrefix(prefix=self.prefix, times=1)

    @property
    def words(self) -> tuple[str, str]:
        return "*", f"{self.prefix}*"


def _whole_segments(prefix: str) -> str:
    if not prefix.endswith(".") or prefix == ".":
        raise PlanError(f"prefix `{prefix}`: only whole segments can be changed: write `{prefix}.`")
    return prefix


class Extract(Operation, frozen=True, kw_only=True, tag="extract"):
    """Continue with the state_dict at `at` in the file, or only with the keys below `prefix`."""

    at: str = ""
    prefix: str = ""
    loses: ClassVar[str] = "everything around it"

    def apply(self, draft: Draft, facts: Facts) -> Draft:  # noqa: ARG002
        if self.at:
            state = state_at(draft.checkpoint, self.at)
            if not state.tensors:
                places = ", ".join(f"`{s.at or '.'}`" for s in draft.checkpoint.states)
                raise PlanError(f"extract `{self.at}`: no tensors are there; there are {places}")
            draft = draft_of(draft.checkpoint, state)
        return self._below(draft) if self.prefix else draft

    def reversed(self) -> Operation:
        raise IrreversibleError("extract: what lay around it is not in the result")

    @property
    def words(self) -> tuple[str, str]:
        return f"{self.at} {self.prefix}*".strip(), "*"

    def _below(self, draft: Draft) -> Draft:
        prefix = _whole_segments(self.prefix)
        items = {key: item for key, item in draft.items.items() if key.startswith(prefix)}
        others = {key: old for key, old in draft.others.items() if key.startswith(prefix)}
        inner = replace(draft, items=items, others=others)
        if draft.versions is not None:
            below = {p: v for p, v in draft.versions.items() if f"{p}.".startswith(prefix)}
            inner = replace(inner, versions=below)
        return StripPrefix(prefix=prefix).apply(inner, NOTHING)


class _NoFacts:
    """Context without module and sources, for operations that request nothing."""

    expected = None

    def value(self, op: Inject, draft: Draft) -> TensorInfo:
        raise PlanError(f"inject `{op.key}`: {len(draft.items)} keys and no sources")

    def product(self, key: str, one: TensorInfo, other: TensorInfo) -> TensorInfo:
        raise PlanError(f"bake `{key}`: no sources for {one.key} and {other.key}")


NOTHING: Facts = _NoFacts()
