"""State of a module or a file <-> RecordedState: keys, shapes and dtypes, one line of text each."""

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Final

from msgspec import Struct

from ckptool.compare.contracts.contract import Contract
from ckptool.errors import RevisionError
from ckptool.migration.plan.draft import Draft
from ckptool.model import TensorInfo, natural_sort_key
from ckptool.phrases import MAX_NAMED, join_limited, quote_code

NO_TENSOR: Final = "object"
"""Form of a key whose value is not a tensor, such as an extra state."""
_MAX_WRAPPERS: Final = 3
"""Wrappers around a module whose prefixes are tried: compiled, distributed, in another module."""
_LINE: Final = re.compile(
    r"(?P<form>object|\w+ \[(?:\d+(?:, \d+)*)?\](?: \(\w+\))?) "
    r'(?P<key>"(?:[^"\\]|\\.)*"|[^\s"]+)'
    r'(?: = (?P<kept>"(?:[^"\\]|\\.)*"|[^\s"]+))?'
)
_PLAIN_KEY: Final = re.compile(r"[\w.\-\[\]/:@]+", re.ASCII)
_READABLE_LAYOUTS: Final = frozenset({"strided", "chunked"})
_FORM: Final = re.compile(r"(?P<dtype>\w+) \[(?P<shape>[^\]]*)\](?: \((?P<layout>\w+)\))?")


class RecordedState(Struct, frozen=True):
    """The keys of a state_dict and what they hold, in natural order."""

    forms: Mapping[str, str]
    """Key -> "float32 [4, 4]", with a layout that is not strided behind it, or NO_TENSOR."""
    ties: Mapping[str, str] = {}
    """Tied key -> the first key of its group, which has the same form."""

    @property
    def digest(self) -> str:
        """SHA-256 of `format_state` in hex."""
        return hashlib.sha256(format_state(self).encode()).hexdigest()

    @property
    def shapes(self) -> dict[str, str]:
        """Key -> its form without the dtype: what decides whether torch loads it."""
        return {key: form.partition(" ")[2] for key, form in self.forms.items()}


class StateDifference(Struct, frozen=True):
    """How a state differs from a recorded one."""

    missing: tuple[str, ...]
    """Recorded keys that the state lacks, tied names that a file may leave out aside."""
    unexpected: tuple[str, ...]
    changed: tuple[str, ...]
    """Keys of another shape, layout or dtype."""
    reshaped: tuple[str, ...]
    """Those of `changed` whose shape or layout differs."""

    @property
    def is_empty(self) -> bool:
        return not (self.missing or self.unexpected or self.changed)

    @property
    def has_same_keys(self) -> bool:
        return not (self.missing or self.unexpected)

    @property
    def text(self) -> str:
        """The difference in a few words: "`mask` was added; `a` was removed"."""
        parts = (
            (self.unexpected, "added"),
            (self.missing, "removed"),
            (self.changed, "changed in shape or dtype"),
        )
        return "; ".join(
            f"{join_limited(keys, MAX_NAMED, quote_code)} {'was' if len(keys) == 1 else 'were'}"
            f" {verb}"
            for keys, verb in parts
            if keys
        )


def record_contract(contract: Contract) -> RecordedState:
    """Return the state of a module, a checkpoint or a lock, by its contract."""
    saved_entries = contract.saved_entries
    forms = {key: entry.type_description for key, entry in saved_entries.items()}
    ties = {
        key: entry.tied
        for key, entry in saved_entries.items()
        if entry.tied is not None and entry.tied != key and entry.tied in saved_entries
    }
    return RecordedState(sort_keys(forms | dict.fromkeys(contract.non_tensors, NO_TENSOR)), ties)


def record_draft(draft: Draft) -> RecordedState:
    """Return the state that a draft writes."""
    forms = {key: _describe_form(item.describe_tensor(key)) for key, item in draft.items.items()}
    return RecordedState(sort_keys(forms | dict.fromkeys(draft.non_tensor_keys, NO_TENSOR)))


def compare_states(recorded: RecordedState, state: RecordedState) -> StateDifference:
    """Return how `state` differs from `recorded`; a tied name that is left out is no difference."""
    missing = [
        key
        for key in recorded.forms
        if key not in state.forms and recorded.ties.get(key) not in state.forms
    ]
    changed = [key for key, form in recorded.forms.items() if state.forms.get(key, form) != form]
    lazy = [key for key in changed if recorded.forms[key].endswith("(lazy)")]
    changed = [key for key in changed if key not in lazy]
    shapes, recorded_shapes = state.shapes, recorded.shapes
    return StateDifference(
        tuple(missing),
        tuple(key for key in state.forms if key not in recorded.forms),
        tuple(changed),
        tuple(key for key in changed if shapes[key] != recorded_shapes[key]),
    )


def list_common_prefixes(state: RecordedState) -> tuple[str, ...]:
    """Return what all keys begin with, up to a dot: "module." of a wrapper, then what is inside."""
    keys = [key for key, form in state.forms.items() if form != NO_TENSOR]
    if not keys:
        return ()
    first, last = (key.split(".")[:-1] for key in (min(keys), max(keys)))
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    segments = [segment for segment, _ in pairs][:_MAX_WRAPPERS]
    return tuple(f"{'.'.join(segments[:end])}." for end in range(1, len(segments) + 1))


def strip_prefix(state: RecordedState, prefix: str) -> RecordedState:
    """Return the state with a prefix taken off its keys."""
    forms = {key.removeprefix(prefix): form for key, form in state.forms.items()}
    return RecordedState(sort_keys(forms))


def format_state(state: RecordedState) -> str:
    """Return one line for each key: its form, the key, and the key that it is tied to."""
    return "".join(
        f"{form} {_quote_key(key)}"
        + (f" = {_quote_key(state.ties[key])}" if key in state.ties else "")
        + "\n"
        for key, form in state.forms.items()
    )


def parse_state(text: str) -> RecordedState:
    """Return the state of `format_state`.

    Raises:
        RevisionError: a line is none, or a key stands twice.
    """
    forms: dict[str, str] = {}
    ties: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise RevisionError(f"line {number} of the recorded state is not `FORM KEY`")
        key = _unquote_key(match["key"], number)
        if key in forms:
            raise RevisionError(f"the recorded state has {quote_code(key)} twice")
        forms[key] = match["form"]
        if match["kept"]:
            ties[key] = _unquote_key(match["kept"], number)
    if any(kept not in forms for kept in ties.values()):
        raise RevisionError("the recorded state ties a key to one that it does not have")
    return RecordedState(forms, ties)


def parse_form(form: str) -> tuple[str, tuple[int, ...], str] | None:
    """Return dtype, shape and layout of a form; None of NO_TENSOR."""
    match = _FORM.fullmatch(form)
    if match is None:
        return None
    shape = tuple(int(size) for size in match["shape"].split(", ") if size)
    return match["dtype"], shape, match["layout"] or "strided"


def _describe_form(tensor: TensorInfo) -> str:
    layout = "" if tensor.layout in _READABLE_LAYOUTS else f" ({tensor.layout})"
    return f"{tensor.dtype} {list(tensor.shape)}{layout}"


def sort_keys(forms: Mapping[str, str]) -> dict[str, str]:
    """Return the forms with their keys in natural order."""
    return {key: forms[key] for key in sorted(forms, key=natural_sort_key)}


def _quote_key(key: str) -> str:
    """Return a key as it is, or as a JSON string that a TOML literal string can hold."""
    return key if _PLAIN_KEY.fullmatch(key) else json.dumps(key).replace("'", "\\u0027")


def _unquote_key(text: str, number: int) -> str:
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError as error:
        raise RevisionError(f"line {number} of the recorded state has no valid key") from error
