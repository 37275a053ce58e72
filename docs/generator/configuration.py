"""The configuration's structs -> docs/configuration.md."""

from collections.abc import Iterator

from msgspec import Struct
from msgspec import inspect as types

from ckptool.config import Settings
from generator.structs import cell, fields, summary, words

INTRODUCTION = """\
# Configuration

This page is generated from the code. ckptool reads `[tool.ckptool]` of the nearest
`pyproject.toml`, or the whole of the nearest `ckptool.toml` (there without `tool.ckptool.` in
front of a table's name), from the current directory up, never next to the checkpoint. An unknown
key is an error that suggests the closest known one. Command-line options take precedence. See
[Gate](gate.md) for the keys of a policy, and [Lock](lock.md) for `against`, `fixtures` and
`golden`.
"""


def page() -> str:
    lines = [INTRODUCTION]
    for struct in (Settings, *_tables()):
        lines += _section(struct)
    return "\n".join(lines)


def _tables() -> Iterator[type[Struct]]:
    """Yield the structs that the configuration's tables are, in the order of its keys."""
    seen = []
    for field in fields(Settings):
        for struct in _inside(field.kind):
            if struct not in seen:
                seen.append(struct)
                yield struct


def _inside(kind: types.Type) -> Iterator[type[Struct]]:
    match kind:
        case types.StructType(cls=cls):
            yield cls
        case types.VarTupleType(item_type=item):
            yield from _inside(item)
        case _:
            return


def _section(struct: type[Struct]) -> list[str]:
    title, _, meaning = summary(struct).partition(": ")
    name = _name(struct)
    lines = [f"## {name}", "", f"{title}: {meaning}" if meaning else title, ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for field in fields(struct):
        tables = list(_inside(field.kind))
        value = f"[{_name(tables[0])}](#{_anchor(tables[0])})" if tables else words(field.kind)
        written = f"`{field.default}`" * bool(field.default)
        default = "required" if field.default is None else written
        lines.append(f"| `{field.name}` | {cell(value)} | {default} | {cell(field.says)} |")
    return [*lines, ""]


def _name(struct: type[Struct]) -> str:
    """Return what the headline calls a table: its place, without brackets."""
    place = summary(struct).partition("`[")[2].partition("]")[0].strip("[")
    return place or struct.__name__


def _anchor(struct: type[Struct]) -> str:
    return _name(struct).replace(".", "").lower()
