"""Operations on keys: injecting, renaming, dropping, prefixes, the state at a key path."""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from msgspec.structs import replace

from ckptool.compare.rename_search.key_patterns import PatternError, rename_by_pattern
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
from ckptool.migration.plan.operation import (
    EMPTY_CONTEXT,
    IrreversibleError,
    Operation,
    OperationContext,
)
from ckptool.model import TensorInfo
from ckptool.phrases import MAX_NAMED, join_limited, quote_code


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
            raise PlanError(f"inject `{self.key}`: the file already has that key")
        value = context.locate_value(self, draft)
        return replace(draft, items={**draft.items, self.key: PlannedTensor(value)})

    def build_inverse(self) -> Operation:
        return DropKeys(key=self.key, why=f"{self.source} was injected here")

    @property
    def before_after_text(self) -> tuple[str, str]:
        dtype_text = f" {self.dtype}" if self.dtype else ""
        return "-", f"{self.key}{dtype_text}{'' if self.shape is None else list(self.shape)}"


RenameMode = Literal["exact", "prefix", "glob", "regex"]
"""How `RenameKeys` matches and renames keys."""


class RenameKeys(Operation, frozen=True, kw_only=True, tag="rename"):
    """Rename keys, all at once: `key` to `to`, or each old key of `keys` to its new one.

    So layers can swap places (2 to 3 and 1 to 2 in one step). Refused (CK221), judged by what is
    there after the whole step: a key that another tensor has, a key that the module does not have
    or has with another shape, and leaving a key without a tensor that the module would load.
    """

    key: str = ""
    to: str = ""
    how: RenameMode = "exact"
    """"exact"; "prefix": keys that start with `key`; "glob": `*` is text without a dot, at either
    end any text, and `{0..2,5}` are numbers, which those of `to` replace one by one; "regex": `to`
    is the replacement template, with `\\1` for a captured group."""
    keys: Mapping[str, str] = {}
    """A table of old and new keys, in the place of `key` and `to`."""
    numbers: Mapping[str, str] = {}
    """With "regex": old and new text of the group `(?P<number>...)`, or else of the first; keys
    with another text there are left alone."""

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        self._check_form()
        new_keys = {
            key: new
            for key in (*draft.items, *draft.non_tensor_keys)
            if (new := self.rename_key(key)) and new != key
        }
        unknown_keys = [key for key in self.keys or {self.key: ""} if key not in new_keys]
        if not new_keys or (self.keys and unknown_keys):
            unknown_key = unknown_keys[0]
            raise PlanError(
                f"rename `{unknown_key}`: no key of the file "
                f"matches{key_suggestion(draft, unknown_key)}"
            )
        new_places = {*new_keys.values()}
        reasons = {
            key: reason
            for key, new in new_keys.items()
            if (reason := _find_refusal(key, new, new_keys, new_places, draft, context.expected))
        }
        if reasons:
            key, reason = next(iter(reasons.items()))
            fitting = {old: new for old, new in new_keys.items() if old not in reasons}
            raise RenameRefusedError(key, new_keys[key], reason, fitting)
        result = rename_keys(draft, lambda key: new_keys.get(key, key), lambda prefix: prefix)
        return replace(result, versions=self._rename_versions(draft, new_keys))

    def build_inverse(self) -> Operation:
        if self.how == "regex":
            raise IrreversibleError(f"rename `{self.key}`: a regular expression cannot be reversed")
        if self.keys:
            return RenameKeys(keys={new: old for old, new in self.keys.items()})
        return RenameKeys(key=self.to, to=self.key, how=self.how)

    @property
    def before_after_text(self) -> tuple[str, str]:
        if self.keys:
            more = f" and {len(self.keys) - 1:,} more" if len(self.keys) > 1 else ""
            old, new = next(iter(self.keys.items()))
            return f"{old}{more}", f"{new}{more}"
        suffix = {"exact": "", "prefix": "*", "glob": "", "regex": " (regex)"}[self.how]
        return f"{self.key}{suffix}", f"{self.to}{suffix}"

    def _check_form(self) -> None:
        """Raise PlanError for fields that contradict each other."""
        is_single = bool(self.key or self.to or self.how != "exact" or self.numbers)
        if is_single == bool(self.keys):
            raise PlanError("rename: either `key` and `to`, or a table `keys` alone")
        if self.numbers and self.how != "regex":
            raise PlanError(f'rename `{self.key}`: `numbers` goes with how = "regex"')
        if len({*self.keys.values()}) < len(self.keys):
            raise PlanError("rename: two keys of the table would get the same name")

    def rename_key(self, key: str) -> str:
        """Return the new name of `key`, "" if it keeps its own.

        Raises:
            PlanError: the pattern cannot be applied.
        """
        if self.keys:
            return self.keys.get(key, "")
        if self.how == "exact":
            return self.to if key == self.key else ""
        if self.how == "prefix":
            return self.to + key.removeprefix(self.key) if key.startswith(self.key) else ""
        try:
            if self.how == "glob":
                return rename_by_pattern(key, self.key, self.to)
            return self._substitute(key)
        except PatternError as error:
            raise PlanError(f"rename {error}") from error
        except (re.error, IndexError) as error:
            raise PlanError(f"rename `{self.key}`: is not a regular expression: {error}") from error

    def _substitute(self, key: str) -> str:
        """Rename by the regular expression; "" if it does not match, or not with these numbers."""
        pattern = re.compile(self.key)
        if not self.numbers:
            new = pattern.sub(self.to, key)
            return new if new != key else ""
        if not pattern.groups:
            raise PlanError(f"rename `{self.key}`: `numbers` needs a captured group")
        group = pattern.groupindex.get("number", 1)
        match = pattern.search(key)
        if match is None or match[group] not in self.numbers:
            return ""
        start, end = match.span(group)
        renumbered = f"{key[:start]}{self.numbers[match[group]]}{key[end:]}"
        return pattern.sub(self.to, renumbered)

    def _rename_versions(
        self, draft: Draft, new_keys: Mapping[str, str]
    ) -> Mapping[str, int | None] | None:
        """Return the versions by module prefix, those of renamed modules under their new prefix."""
        if draft.versions is None:
            return None
        new_prefixes = _find_new_prefixes(new_keys)
        remaining_prefixes = {
            prefix
            for key in (*draft.items, *draft.non_tensor_keys)
            if key not in new_keys
            for prefix in _iter_prefixes(key)
            if prefix in new_prefixes
        }
        versions: dict[str, int | None] = {}
        for prefix, version in draft.versions.items():
            new_prefix = _rename_prefix(prefix, new_prefixes, remaining_prefixes)
            is_kept = new_prefix == prefix or prefix in remaining_prefixes
            targets = [prefix] if is_kept else []
            if new_prefix not in draft.versions or new_prefix in new_prefixes:
                targets.append(new_prefix)
            versions |= dict.fromkeys(targets, version)
        return versions


def _find_refusal(
    key: str,
    new: str,
    new_keys: Mapping[str, str],
    new_places: set[str],
    draft: Draft,
    expected: Mapping[str, TensorInfo] | None,
) -> str:
    """Return why `key` is not renamed to `new` by a step that does `new_keys`; "" if it is."""
    if (new in draft.items or new in draft.non_tensor_keys) and new not in new_keys:
        return f"the file already has `{new}`"
    if expected is None or key not in draft.items:
        return ""
    shape = draft.items[key].tensor.shape
    if key in expected and key not in new_places and expected[key].shape == shape:
        return f"the module has `{key}`"
    if new not in expected:
        return f"the module has no `{new}`"
    if shape != expected[new].shape:
        return f"it is {list(shape)} and the module has {list(expected[new].shape)} there"
    return ""


def _find_new_prefixes(new_keys: Mapping[str, str]) -> dict[str, str]:
    """Return old module prefix -> new one: the owners, and what is around them alike."""
    new_prefixes: dict[str, str] = {}
    for old_key, new_key in new_keys.items():
        old, new = old_key.rpartition(".")[0], new_key.rpartition(".")[0]
        while old != new and old and new and old not in new_prefixes:
            new_prefixes[old] = new
            (old, _, old_name), (new, _, new_name) = old.rpartition("."), new.rpartition(".")
            if old_name != new_name:
                break
    return new_prefixes


def _rename_prefix(
    prefix: str, new_prefixes: Mapping[str, str], remaining_prefixes: set[str]
) -> str:
    """Return the new prefix of a module, also of one without keys below a module that moved."""
    if prefix in new_prefixes:
        return new_prefixes[prefix]
    for outer in _iter_prefixes(prefix):
        if outer in new_prefixes and outer not in remaining_prefixes:
            return new_prefixes[outer] + prefix[len(outer) :]
    return prefix


def _iter_prefixes(key: str) -> Iterator[str]:
    """Yield the prefixes of the modules that `key` lies in, innermost first, without the root."""
    end = key.rfind(".")
    while end > 0:
        yield key[:end]
        end = key.rfind(".", 0, end)


class DropKeys(Operation, frozen=True, kw_only=True, tag="drop"):
    """Remove `key`, or all keys that match it as a glob."""

    key: str
    data_loss: ClassVar[str] = "the dropped values"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        dropped_keys = {*match_keys(draft, self.key), *({self.key} & draft.non_tensor_keys.keys())}
        if not dropped_keys:
            raise PlanError(
                f"drop `{self.key}`: no key of the file matches{key_suggestion(draft, self.key)}"
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
        raise IrreversibleError(f"drop `{self.key}`: its value is not in the output")

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
            raise PlanError(f"strip-prefix `{prefix}`: no key begins with it")
        return rename_keys(draft, self._strip_key, self._strip_module_prefix)

    def build_inverse(self) -> Operation:
        if self.anywhere:
            raise IrreversibleError(
                f"strip-prefix `{self.prefix}`: its original position is not recorded"
            )
        return AddPrefix(prefix=self.prefix, why="assuming that every key had it")

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
        raise PlanError(
            f"prefix `{prefix}`: only complete segments can be changed: write `{prefix}.`"
        )
    return prefix


class ExtractState(Operation, frozen=True, kw_only=True, tag="extract"):
    """Continue with the state_dict at `at` in the file, or only with the keys below `prefix`."""

    at: str = ""
    prefix: str = ""
    data_loss: ClassVar[str] = "everything outside it"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:  # noqa: ARG002
        if self.at:
            state = get_state(draft.checkpoint, self.at)
            if not state.tensors:
                places = [state.at or "." for state in draft.checkpoint.states]
                state_paths = join_limited(places, MAX_NAMED, quote_code)
                raise PlanError(
                    f"extract `{self.at}`: no tensors at that key path; there are {state_paths}"
                )
            draft = create_draft(draft.checkpoint, state)
        draft = replace(draft, is_extracted=True)
        return self._keep_prefix(draft) if self.prefix else draft

    def build_inverse(self) -> Operation:
        raise IrreversibleError("extract: what was outside it is not in the output")

    @property
    def before_after_text(self) -> tuple[str, str]:
        prefix = f"{self.prefix}*" if self.prefix else ""
        return f"{self.at} {prefix}".strip(), "*"

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
