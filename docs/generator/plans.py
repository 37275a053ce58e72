"""The operations of a plan -> docs/plan.md."""

from typing import get_args

from ckptool.migration.plan.key_operations import Operation
from ckptool.migration.plan.plan_file import SCHEMA, Op, Plan, format_plan
from generator.structs import cell, fields, summary, words

INTRODUCTION = """\
# Plans

Made from the code by `docs/generate.py`. A plan is a TOML file: `ckptool migrate --save-plan FILE`
writes it, `--plan FILE` does it, `--reverse` undoes it; [Migrate](migrate.md) tells how plans are
derived and when a step is refused. `schema` is {schema}. Its steps, `[[ops]]`, are done in order;
each names its operation in `op`, and may say why in `why`, which decides nothing. An unknown key
or operation is an error with the place and the name that was probably meant.

```toml
{example}
```
"""


def page() -> str:
    lines = [INTRODUCTION.format(schema=SCHEMA, example=format_plan(_example()).rstrip())]
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


def _section(op: type[Operation]) -> list[str]:
    lines = [f"## {op.__struct_config__.tag}", "", _described(op), ""]
    lines += ["| key | value | default | means |", "|---|---|---|---|"]
    for field in fields(op):
        if field.name == "why":
            continue
        default = "needed" if field.default is None else f"`{field.default}`" * bool(field.default)
        lines.append(f"| `{field.name}` | {words(field.kind)} | {default} | {cell(field.says)} |")
    return [*lines, ""]


def _described(op: type[Operation]) -> str:
    lost = f" The result no longer has {op.data_loss}." if op.data_loss else ""
    return f"{summary(op)}{lost}"
