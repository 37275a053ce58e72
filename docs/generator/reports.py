"""The reports' structs -> docs/report.md and docs/report.schema.json."""

import json
from collections.abc import Iterator
from typing import get_args

import msgspec
from msgspec import Struct

from ckptool import report
from generator.structs import cell, fields, summary

INTRODUCTION = """\
# Reports

Made from the code by `docs/generate.py`. What a command finds out is one of these structs: the
functions of the [Python API](api.md) return it, and `--format json` prints it with the same names;
its [JSON Schema](report.schema.json) is checked in the tests. `schema` is {schema}; within one
number fields are only added. Sizes are in bytes, shapes in elements, shares from 0 to 1.
"""


def page() -> str:
    common = {field.name for field in fields(report.Report)}
    lines = [INTRODUCTION.format(schema=report.SCHEMA), *_section(report.Report, set())]
    for kind in get_args(report.AnyReport):
        lines += _section(kind, common)
    lines += ["## Parts", "", "What the reports are made of.", ""]
    for part in _parts():
        lines += _section(part, set(), "###")
    return "\n".join(lines)


def schema() -> str:
    kinds = get_args(report.AnyReport)
    references, components = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What `ckptool --format json` prints",
        "anyOf": list(references),
        "$defs": components,
    }
    return json.dumps(whole, indent=2) + "\n"


def _parts() -> Iterator[type[Struct]]:
    """Yield the structs of report.py that are no report of a command, as they stand there."""
    for _, one in sorted(vars(report).items()):
        part = isinstance(one, type) and issubclass(one, Struct) and one is not Struct
        if part and not issubclass(one, report.Report):
            yield one


def _section(struct: type[Struct], without: set[str], mark: str = "##") -> list[str]:
    said = summary(struct)
    lines = [f"{mark} {struct.__name__}", "", *([said, ""] if said else [])]
    if without:
        lines += ["Besides the fields of [Report](#report):", ""]
    lines += ["| field | type | what it says |", "|---|---|---|"]
    for field in fields(struct):
        if field.name not in without:
            default = f" Default: `{field.default}`." if field.default else ""
            lines.append(
                f"| `{field.name}` | `{cell(field.annotation)}` | {cell(field.says + default)} |"
            )
    return [*lines, ""]
