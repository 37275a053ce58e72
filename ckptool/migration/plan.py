"""TOML <-> Plan: the operations of a migration, in order, readable and editable."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct, structs

from ckptool.errors import PlanError, RenameRefusedError
from ckptool.faults import plainly
from ckptool.migration.draft import Draft
from ckptool.migration.ops import (
    AddPrefix,
    Drop,
    Extract,
    Facts,
    How,
    Inject,
    IrreversibleError,
    Operation,
    Rename,
    StripPrefix,
)
from ckptool.migration.reshaping import (
    Bake,
    Cast,
    Compact,
    Concat,
    Reshape,
    Split,
    Tie,
    Transpose,
    Untie,
)

Op = (
    Inject | Rename | Drop | StripPrefix | AddPrefix | Extract | Cast | Reshape | Transpose
    | Split | Concat | Tie | Untie | Compact | Bake
)  # fmt: skip
"""Union of all operations; a new operation class must be added here."""

SCHEMA: Final = 1


class Plan(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The operations of a migration, in order."""

    ops: tuple[Op, ...] = ()
    schema: int = SCHEMA
    undoes: bool = False
    """Whether the plan is the reverse of another; the steps alone may be equal (transpose)."""


def apply(plan: Iterable[Operation], draft: Draft, facts: Facts, name: str = "") -> Draft:
    """Return `draft` after all operations; `name`, the plan's file, prefixes error messages.

    Raises:
        PlanError: a step matches no key, or is refused; the message has the step number.
    """

    def place(number: int) -> str:
        return f"{name}: step {number}: " if name else f"step {number}: "

    for number, op in enumerate(plan, 1):
        try:
            draft = op.apply(draft, facts)
        except RenameRefusedError as error:
            raise RenameRefusedError(error.key, error.to, error.reason, place(number)) from error
        except PlanError as error:
            raise PlanError(f"{place(number)}{error}") from error
    return draft


def reverse(plan: Plan) -> Plan:
    """Return the inverse plan.

    Raises:
        PlanError: steps have no inverse; the message lists each with its reason.
    """
    steps, lost = [], []
    for op in reversed(plan.ops):
        try:
            steps.append(op.reversed())
        except IrreversibleError as error:
            lost.append(str(error))
    if lost:
        raise PlanError(f"the plan has no reverse: {'; '.join(reversed(lost))}")
    return Plan(tuple(steps), undoes=not plan.undoes)  # type: ignore[arg-type]  # each is an Op


def to_data(plan: Plan) -> list[dict[str, Any]]:
    """Return the operations as JSON-compatible dicts."""
    steps: list[dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(plan.ops))
    return steps


def write(plan: Plan) -> str:
    """Return the TOML text of a plan file."""
    blocks = [f"schema = {plan.schema}\n" + ("undoes = true\n" if plan.undoes else "")]
    return "\n".join([*blocks, *map(step_text, plan.ops)])


def step_text(step: Op) -> str:
    """Return one operation as a TOML `[[ops]]` table."""
    data = msgspec.json.decode(msgspec.json.encode(step))
    return "[[ops]]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in data.items())


def read(text: str, name: str = "plan") -> Plan:
    """Parse the TOML text of a plan file; `name` prefixes error messages.

    Raises:
        PlanError: the text is not TOML or not a plan; the message has the place and suggestions.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"{name}: is no TOML: {error}") from error
    return from_data(data, name)


def from_data(data: Mapping[str, Any], name: str) -> Plan:
    """Convert decoded TOML or JSON to a plan; `name` prefixes error messages.

    Raises:
        PlanError: the data is not a plan.
    """
    if data.get("schema", SCHEMA) != SCHEMA:
        raise PlanError(
            f"{name}: schema {data['schema']!r} is not one that this version reads: it is {SCHEMA}"
        )
    _check_names(data, name)
    try:
        return msgspec.convert(data, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(f"{name}: {plainly(str(error), {'how': get_args(How)})}") from error


def read_file(path: Path) -> Plan:
    """Read a plan from a TOML file.

    Raises:
        PlanError: the file cannot be read, or is not a plan.
    """
    try:
        return read(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: is not UTF-8") from error


_OPS: Final[Mapping[str, type[Operation]]] = {
    str(op.__struct_config__.tag): op for op in Op.__args__
}


def _check_names(data: Mapping[str, Any], name: str) -> None:
    """Raise for unknown keys and operations, with suggestions; msgspec validates the rest."""
    _check_known(data, Plan.__struct_fields__, f"{name}: there is no key")
    steps = data.get("ops")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if isinstance(step, dict) and isinstance(step.get("op"), str):
            place = f"{name}: step {index + 1}"
            _check_known({step["op"]: None}, _OPS, f"{place}: there is no operation")
            fields = structs.fields(_OPS[step["op"]])
            keys = ("op", *(field.encode_name for field in fields))
            _check_known(step, keys, f"{place}: {step['op']} has no key")


def _check_known(found: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    names = list(known)
    for word in found:
        if word not in names:
            close = get_close_matches(word, names, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise PlanError(f"{what} {word!r}: {meant}")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return _text(value) if isinstance(value, str) else str(value)


def _text(value: str) -> str:
    """Return a TOML basic string: JSON escapes are valid TOML, except for DEL."""
    shown = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return re.sub(r"[\ud800-\udfff]", "\ufffd", shown)
