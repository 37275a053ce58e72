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

from ckptool.decode_errors import explain_decode_error
from ckptool.errors import PlanError, RenameRefusedError, describe_os_error
from ckptool.locations import read_small_file
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.key_operations import (
    AddPrefix,
    DropKeys,
    ExtractState,
    InjectTensor,
    RenameKeys,
    RenameMode,
    StripPrefix,
)
from ckptool.migration.plan.operation import IrreversibleError, Operation, OperationContext
from ckptool.migration.plan.reparametrization_operations import (
    AddWeightNorm,
    RemoveSpectralNorm,
    RemoveWeightNorm,
)
from ckptool.migration.plan.tensor_operations import (
    BakeMask,
    CastTensors,
    CompactViews,
    ConcatTensors,
    ReshapeTensor,
    SplitTensor,
    TieTensors,
    TransposeTensor,
    UntieTensor,
)

Op = (
    InjectTensor
    | RenameKeys
    | DropKeys
    | StripPrefix
    | AddPrefix
    | ExtractState
    | CastTensors
    | ReshapeTensor
    | TransposeTensor
    | SplitTensor
    | ConcatTensors
    | TieTensors
    | UntieTensor
    | CompactViews
    | BakeMask
    | RemoveWeightNorm
    | AddWeightNorm
    | RemoveSpectralNorm
)
"""Union of all operations; a new operation class must be added here."""

SCHEMA: Final = 1


class Plan(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The operations of a migration, in order."""

    ops: tuple[Op, ...] = ()
    schema: int = SCHEMA
    undoes: bool = False
    """Whether the plan is the reverse of another; the steps alone may be equal (transpose)."""


def apply_plan(
    operations: Iterable[Operation], draft: Draft, context: OperationContext, name: str = ""
) -> Draft:
    """Return `draft` after all operations; `name`, the plan's file, prefixes error messages.

    Raises:
        PlanError: a step matches no key, or is refused; the message has the step number.
    """

    def describe_step(number: int) -> str:
        return f"{name}: step {number}: " if name else f"step {number}: "

    for number, op in enumerate(operations, 1):
        try:
            draft = op.apply(draft, context)
        except RenameRefusedError as error:
            raise RenameRefusedError(
                error.key, error.to, error.reason, error.fitting, describe_step(number)
            ) from error
        except PlanError as error:
            raise PlanError(f"{describe_step(number)}{error}") from error
    return draft


def reverse_plan(plan: Plan) -> Plan:
    """Return the inverse plan.

    Raises:
        PlanError: steps have no inverse; the message lists each with its reason.
    """
    steps, reasons = [], []
    for op in reversed(plan.ops):
        try:
            steps.append(op.build_inverse())
        except IrreversibleError as error:
            reasons.append(str(error))
    if reasons:
        raise PlanError(f"the plan has no reverse: {'; '.join(reversed(reasons))}")
    return Plan(tuple(steps), undoes=not plan.undoes)  # type: ignore[arg-type]  # each is an Op


def encode_plan(plan: Plan) -> list[dict[str, Any]]:
    """Return the operations as the dicts that JSON gives back."""
    # json keeps halves of surrogate pairs, which keys of a pickle may have; msgspec refuses them.
    steps: list[dict[str, Any]] = json.loads(json.dumps(msgspec.to_builtins(plan.ops)))
    return steps


def format_plan(plan: Plan) -> str:
    """Return the TOML text of a plan file."""
    head: dict[str, Any] = {"schema": plan.schema, **({"undoes": True} if plan.undoes else {})}
    return "\n".join([_format_table(head), *map(format_step, plan.ops)])


def format_step(step: Op) -> str:
    """Return one operation as a TOML `[[ops]]` table."""
    fields = msgspec.to_builtins(step)
    tables = {name: value for name, value in fields.items() if isinstance(value, dict)}
    plain_fields = {name: value for name, value in fields.items() if name not in tables}
    texts = [f"\n[ops.{name}]\n{_format_table(table)}" for name, table in tables.items()]
    return "".join(["[[ops]]\n", _format_table(plain_fields), *texts])


def parse_plan(text: str, name: str = "plan") -> Plan:
    """Parse the TOML text of a plan file; `name` prefixes error messages.

    Raises:
        PlanError: the text is not TOML or not a plan; the message has the place and suggestions.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"{name}: is not valid TOML: {error}") from error
    return decode_plan(data, name)


def decode_plan(data: Mapping[str, Any], name: str) -> Plan:
    """Convert decoded TOML or JSON to a plan; `name` prefixes error messages.

    Raises:
        PlanError: the data is not a plan.
    """
    if data.get("schema", SCHEMA) != SCHEMA:
        raise PlanError(
            f"{name}: schema {data['schema']!r} is not supported: this version reads {SCHEMA}"
        )
    _check_names(data, name)
    try:
        return msgspec.convert(data, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(
            f"{name}: {explain_decode_error(str(error), {'how': get_args(RenameMode)})}"
        ) from error


def read_plan_file(path: Path) -> Plan:
    """Read a plan from a TOML file.

    Raises:
        PlanError: the file cannot be read, or is not a plan.
    """
    try:
        return parse_plan(read_small_file(path).decode(), str(path))
    except OSError as error:
        raise PlanError(f"{path}: {describe_os_error(error)}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: is not UTF-8") from error


_OPERATIONS_BY_TAG: Final[Mapping[str, type[Operation]]] = {
    str(op.__struct_config__.tag): op for op in Op.__args__
}


def _check_names(data: Mapping[str, Any], name: str) -> None:
    """Raise for unknown keys and operations, with suggestions; msgspec validates the rest."""
    _check_known_names(data, Plan.__struct_fields__, f"{name}: there is no key")
    steps = data.get("ops")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if isinstance(step, dict) and isinstance(step.get("op"), str):
            location = f"{name}: step {index + 1}"
            _check_known_names(
                {step["op"]: None}, _OPERATIONS_BY_TAG, f"{location}: there is no operation"
            )
            fields = structs.fields(_OPERATIONS_BY_TAG[step["op"]])
            keys = ("op", *(field.encode_name for field in fields))
            _check_known_names(step, keys, f"{location}: {step['op']} has no key")


def _check_known_names(
    entries: Mapping[str, Any], known_names: Iterable[str], message: str
) -> None:
    name_list = list(known_names)
    for name in entries:
        if name not in name_list:
            close_matches = get_close_matches(name, name_list, n=1)
            hint = (
                f"did you mean {close_matches[0]!r}?"
                if close_matches
                else f"there are {', '.join(name_list)}"
            )
            raise PlanError(f"{message} {name!r}: {hint}")


def _format_table(table: Mapping[str, Any]) -> str:
    import tomli_w

    # Half of a surrogate pair, which a key of a pickle may have, cannot be written.
    return re.sub(r"[\ud800-\udfff]", "\ufffd", tomli_w.dumps(table))
