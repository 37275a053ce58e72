"""TOML <-> a plan: the operations of a migration, in order, as a person can read and edit them."""

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
"""Every operation there is: a new one is a class of its own, and a name here."""

SCHEMA: Final = 1


class Plan(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be done, in order."""

    ops: tuple[Op, ...] = ()
    schema: int = SCHEMA
    undoes: bool = False
    """Whether it was made to undo another: a transposition undone is the same steps again."""


def apply(plan: Iterable[Operation], draft: Draft, facts: Facts, name: str = "") -> Draft:
    """Return what `draft` is after all steps; errors begin with `name`, that of the plan's file.

    Raises:
        PlanError: a step matches nothing, or would do harm; the message says which one.
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
    """Return the plan that leads back.

    Raises:
        PlanError: it names every step that cannot be undone, and why.
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
    """Return the steps as plain data, as JSON has it."""
    steps: list[dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(plan.ops))
    return steps


def write(plan: Plan) -> str:
    """Return the text of a plan's file."""
    blocks = [f"schema = {plan.schema}\n" + ("undoes = true\n" if plan.undoes else "")]
    return "\n".join([*blocks, *map(step_text, plan.ops)])


def step_text(step: Op) -> str:
    """Return one step as a plan's file has it."""
    data = msgspec.json.decode(msgspec.json.encode(step))
    return "[[ops]]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in data.items())


def read(text: str, name: str = "plan") -> Plan:
    """Return the plan that the text of a file is.

    Raises:
        PlanError: it is no TOML, or no plan; the message says where, and what is meant perhaps.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"{name}: is no TOML: {error}") from error
    return from_data(data, name)


def from_data(data: Mapping[str, Any], name: str) -> Plan:
    """Return the plan of plain data.

    Raises:
        PlanError: it is no plan.
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
    """Return the plan in a file.

    Raises:
        PlanError: it cannot be read, or is no plan.
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
    """Say what an unknown name is perhaps meant to be; all else is msgspec's to refuse."""
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
    """Return a basic string: JSON's escapes are TOML's as well, but for DEL."""
    shown = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return re.sub(r"[\ud800-\udfff]", "\ufffd", shown)
