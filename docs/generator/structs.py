"""A struct -> its fields, with the words that stand under them in the source."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from enum import Enum

import msgspec
from msgspec import NODEFAULT, UNSET, Struct
from msgspec import inspect as types


class Field(Struct, frozen=True):
    """One field of a struct."""

    name: str
    """As it is written in a file or in JSON."""
    annotation: str
    """As it is written in Python."""
    default: str | None
    """None where there is none: the field is needed."""
    says: str
    kind: types.Type


def fields(struct: type[Struct]) -> Iterator[Field]:
    """Yield the fields of a struct, inherited ones first."""
    said, written = _docstrings(struct), _annotations(struct)
    kinds = {f.name: f.type for f in types.type_info(struct).fields}
    for field in msgspec.structs.fields(struct):
        name = field.name
        yield Field(
            field.encode_name, written[name], _default(field), said.get(name, ""), kinds[name]
        )


def summary(thing: object) -> str:
    """Return the docstring of a class or function as one line, or "" where it has none."""
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
    return " ".join((own or "").split())


def cell(text: str) -> str:
    """Return `text` as a table's cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


PLAIN = {
    types.StrType: "text",
    types.CustomType: "text",
    types.BoolType: "true or false",
    types.IntType: "integer",
    types.FloatType: "number",
    types.DateType: "date",
}


def words(kind: types.Type) -> str:
    """Return the type of a value as TOML and JSON know it."""
    match kind:
        case types.LiteralType(values=values):
            said = " or ".join(f'"{value}"' for value in values)
        case types.UnionType(types=members):
            said = " or ".join(words(m) for m in members if not isinstance(m, types.NoneType))
        case types.VarTupleType(item_type=item):
            said = f"list: {words(item)}"
        case types.TupleType(item_types=items):
            said = f"{len(items)} values: {', '.join(words(item) for item in items)}"
        case types.DictType(value_type=value):
            said = f"table: {words(value)}"
        case _:
            said = PLAIN.get(type(kind), "anything")
    return said


def _default(field: msgspec.structs.FieldInfo) -> str | None:
    if field.required:
        return None
    value = field.default
    if value is NODEFAULT:
        value = field.default_factory() if field.default_factory is not NODEFAULT else UNSET
    empty = isinstance(value, Struct) or (isinstance(value, str | tuple | dict) and not value)
    return "" if value is None or empty else _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def _classes(struct: type[Struct]) -> Iterator[ast.ClassDef]:
    for base in reversed(struct.__mro__):
        if base not in {object, Struct} and issubclass(base, Struct):
            node = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            if isinstance(node, ast.ClassDef):
                yield node


def _docstrings(struct: type[Struct]) -> dict[str, str]:
    """Return field -> the text that stands under it."""
    found = {}
    for node in _classes(struct):
        for one, after in zip(node.body, node.body[1:], strict=False):
            match one, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(text))
                ):
                    found[name] = " ".join(text.split())
    return found


def _annotations(struct: type[Struct]) -> dict[str, str]:
    return {
        one.target.id: ast.unparse(one.annotation).replace("'", "")
        for node in _classes(struct)
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
