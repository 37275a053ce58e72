"""The reports' structs -> docs/report.md and docs/report.schema.json."""

import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import get_args

import msgspec
from msgspec import Struct

from ckptool import reports
from ckptool.reports.any_report import AnyReport
from ckptool.reports.common import SCHEMA, Report
from generator.structs import cell, fields, summary

INTRODUCTION = """\
# Reports

Made from the code by `docs/generate.py`. What a command finds out is one of these structs: the
functions of the [Python API](api.md) return it, and `--format json` prints it with the same names;
its [JSON Schema](report.schema.json) is checked in the tests. `schema` is {schema}; within one
number fields are only added. Sizes are in bytes, shapes in elements, shares from 0 to 1.
"""


def page() -> str:
    common = {field.name for field in fields(Report)}
    lines = [INTRODUCTION.format(schema=SCHEMA), *_section(Report, set())]
    for kind in get_args(AnyReport):
        lines += _section(kind, common)
    lines += ["## Parts", "", "What the reports are made of.", ""]
    for part in _parts():
        lines += _section(part, set(), "###")
    return "\n".join(lines)


def schema() -> str:
    kinds = get_args(AnyReport)
    references, components = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What `ckptool --format json` prints",
        "anyOf": list(references),
        "$defs": components,
    }
    return json.dumps(whole, indent=2) + "\n"


def report_structs() -> list[type[Struct]]:
    """Return the structs that the modules of `ckptool.reports` define for JSON, by name."""
    found = {}
    for info in pkgutil.iter_modules(reports.__path__):
        module = import_module(f"{reports.__name__}.{info.name}")
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        found |= {c.__name__: c for c in classes if c.__name__.endswith("Report")}
    return [found[name] for name in sorted(found)]


def _parts() -> Iterator[type[Struct]]:
    """Yield the structs that are parts of reports, not the report of a command."""
    return (struct for struct in report_structs() if not issubclass(struct, Report))


def _section(struct: type[Struct], without: set[str], mark: str = "##") -> list[str]:
    said = summary(struct)
    lines = [f"{mark} {struct.__name__}", "", *([said, ""] if said else [])]
    if without:
        lines += ["In addition to the fields of [Report](#report):", ""]
    lines += ["| field | type | description |", "|---|---|---|"]
    for field in fields(struct):
        if field.name not in without:
            default = f" Default: `{field.default}`." if field.default else ""
            lines.append(
                f"| `{field.name}` | `{cell(field.annotation)}` | {cell(field.says + default)} |"
            )
    return [*lines, ""]
