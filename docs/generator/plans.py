"""The operations of a plan -> docs/plan.md."""

from typing import get_args

from ckptool.migration.plan.key_operations import RenameKeys
from ckptool.migration.plan.operation import Operation
from ckptool.migration.plan.plan_file import SCHEMA, Op, Plan, format_plan, format_step
from generator.structs import cell, fields, summary, words

INTRODUCTION = """\
# Plans

This page is generated from the code. A plan is a TOML file: `ckptool migrate --save-plan FILE`
writes it, `--plan FILE` applies it, `--reverse` undoes it; [Migrate](migrate.md) explains how plans
are derived and when a step is refused. `schema` is {schema}. Its steps, `[[ops]]`, are applied in
order. Each names its operation in `op`, and can have a comment in `why`, which has no effect. An
unknown key or operation is an error that suggests the closest known one.

```toml
{example}
```

## Renames of many keys

The keys of one `rename` step are renamed at the same time, so layers can swap places. In this
example, a layer was inserted at `net.1`, and the two after it move up. The three steps are
equivalent; a plan has one of them.

```toml
{pattern}
```

```toml
{regex}
```

```toml
{table}
```

A glob and a table can be reversed, a regular expression cannot.
"""


def page() -> str:
    steps = {name: format_step(step).rstrip() for name, step in _renames().items()}
    example = format_plan(_example()).rstrip()
    lines = [INTRODUCTION.format(schema=SCHEMA, example=example, **steps)]
    for op in get_args(Op):
        lines += _section(op)
    return "\n".join(lines)


def _example() -> Plan:
    operations = {op.__struct_config__.tag: op for op in get_args(Op)}
    return Plan(
        (
            operations["strip-prefix"](prefix="module.", why="DistributedDataParallel added it"),
            operations["inject"](key="mask", source="constructor", dtype="float32", shape=(6, 6)),
        )
    )


def _renames() -> dict[str, Op]:
    keys = {f"net.{n}.{name}": f"net.{n + 1}.{name}" for n in (1, 2) for name in ("bias", "weight")}
    return {
        "pattern": RenameKeys(key="net.{1..2}.*", to="net.{2..3}.*", how="glob"),
        "regex": RenameKeys(
            key=r"^net\.(\d+)\.", to=r"net.\1.", how="regex", numbers={"1": "2", "2": "3"}
        ),
        "table": RenameKeys(keys=keys),
    }


def _section(op: type[Operation]) -> list[str]:
    lines = [f"## {op.__struct_config__.tag}", "", _described(op), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for field in fields(op):
        if field.name == "why":
            continue
        value = f"`{field.default}`" * bool(field.default)
        default = "required" if field.default is None else value
        lines.append(f"| `{field.name}` | {words(field.kind)} | {default} | {cell(field.says)} |")
    return [*lines, ""]


def _described(op: type[Operation]) -> str:
    lost = f" The result no longer has {op.data_loss}." if op.data_loss else ""
    return f"{summary(op)}{lost}"
