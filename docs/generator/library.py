"""The library's public names -> docs/api.md."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FunctionType

from msgspec import Struct

import ckptool
from ckptool import errors
from ckptool.commands.watch import Watched, WatchedObject
from ckptool.formats.limits import Limits
from ckptool.migration.load.checkpoint_tensors import CheckpointTensors
from ckptool.model import Checkpoint, StateDict, StorageInfo, TensorInfo
from generator.reports import report_structs
from generator.structs import cell, fields

INTRODUCTION = """\
# Python API

Made from the code by `docs/generate.py`. Each command is a function with the same words as its
options, and returns the [report](report.md) that the command prints. `import ckptool` imports
neither torch nor numpy: a function imports what it needs. Paths are `str` or `pathlib.Path`; a
module is `"package.module:Name"` or a live `torch.nn.Module`. All errors raised on purpose are
under [CkptoolError](#errors); nothing is printed.

```python
import ckptool

report = ckptool.diff("model.pth", module="package.module:Name", kwargs={"d_in": 3, "d_out": 2})
print(report.verdict, report.exit_code)
for finding in report.findings:
    print(finding.level, finding.code, finding.key, finding.message)
```
"""
OTHERS = (
    Checkpoint,
    StateDict,
    TensorInfo,
    StorageInfo,
    Limits,
    CheckpointTensors,
    Watched,
    WatchedObject,
)
"""Types that are met by way of the functions, and need no import."""
HEAD = re.compile(r"^(Args|Raises|Returns|Yields):$")
ITEM = re.compile(r"^(?P<name>[\w*]+):\s+(?P<text>.*)$")
REPORTS = {struct.__name__ for struct in report_structs()}


def page() -> str:
    lines = [INTRODUCTION]
    public = {name: getattr(ckptool, name) for name in sorted(ckptool.__all__)}
    lines += ["## Functions", ""]
    for name, one in public.items():
        if isinstance(one, FunctionType):
            lines += _function(f"ckptool.{name}", one, "###")
    lines += ["## Types", ""]
    for name, one in public.items():
        if isinstance(one, type) and not issubclass(one, Exception):
            lines += _class(f"ckptool.{name}", one)
    lines += ["## Parameters and results", ""]
    for one in OTHERS:
        lines += _class(f"{_home(one)}.{one.__name__}", one)
    lines += ["## Errors", "", "In `ckptool.errors`, and `ckptool.CkptoolError` itself.", ""]
    tree = (errors.__doc__ or "").partition("\n\n")[2].strip()
    return "\n".join([*lines, "```text", tree, "```", ""])


def _home(one: type) -> str:
    """The package that exports it, else its module."""
    package = one.__module__.rpartition(".")[0]
    exports = getattr(import_module(package), "__all__", ())
    return package if one.__name__ in exports else one.__module__


def _function(title: str, function: Callable[..., object], mark: str) -> list[str]:
    lines = [f"{mark} {title}", "", "```python", _signature(title, function), "```", ""]
    lines += _sections(inspect.getdoc(function) or "")
    returned = _returned(function)
    if returned:
        linked = [f"[{name}](report.md#{name.lower()})" for name in returned]
        lines += [f"Returns: {' or '.join(linked)}", ""]
    return lines


def _node(function: Callable[..., object]) -> ast.FunctionDef:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    return next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))


def _signature(title: str, function: Callable[..., object]) -> str:
    node = _node(function)
    given = [one for one in _arguments(node.args) if one not in {"self", "cls"}]
    returns = f" -> {_words(node.returns)}" if node.returns else ""
    short = f"{title}({', '.join(given)}){returns}"
    if len(short) <= 100:
        return short
    return "\n".join([f"{title}(", *(f"    {one}," for one in given), f"){returns}"])


def _arguments(args: ast.arguments) -> Iterator[str]:
    plain = [*args.posonlyargs, *args.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults))
    for one, default in zip(plain, [*missing, *args.defaults], strict=True):
        yield _argument(one, default)
    if args.vararg:
        yield f"*{_argument(args.vararg, None)}"
    elif args.kwonlyargs:
        yield "*"
    for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _argument(one, default)


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    said = f": {_words(one.annotation)}" if one.annotation else ""
    given = (
        ""
        if default is None
        else f" = {ast.unparse(default)}"
        if said
        else f"={ast.unparse(default)}"
    )
    return f"{one.arg}{said}{given}"


def _words(annotation: ast.expr | None) -> str:
    """Return an annotation as a reader knows it: without quotes and modules."""
    return re.sub(r"'|\breport\.", "", ast.unparse(annotation)) if annotation else "None"


def _returned(function: Callable[..., object]) -> list[str]:
    returns = _node(function).returns
    return (
        [name for name in re.findall(r"\w+", _words(returns)) if name in REPORTS] if returns else []
    )


def _sections(text: str) -> list[str]:
    """Return a docstring as Markdown: its sentences, then its sections as lists."""
    lines: list[str] = []
    for line in text.splitlines():
        head, item = HEAD.match(line), ITEM.match(line.strip()) if line.startswith("    ") else None
        if head:
            lines += [f"{head[1]}:", ""]
        elif item:
            name = (
                f"[{item['name']}](#errors)"
                if item["name"].endswith("Error")
                else f"`{item['name']}`"
            )
            lines.append(f"- {name}: {item['text']}")
        elif line.startswith("    ") and lines:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return [*lines, ""]


def _class(title: str, one: type) -> list[str]:
    lines = [f"### {title}", "", *_sections(inspect.getdoc(one) or "")]
    if issubclass(one, Struct):
        lines += ["| field | type | default | description |", "|---|---|---|---|"]
        for field in fields(one):
            default = (
                "needed" if field.default is None else f"`{field.default}`" * bool(field.default)
            )
            lines.append(
                f"| `{field.name}` | `{cell(field.annotation)}` | {default} | {cell(field.says)} |"
            )
        lines.append("")
    elif hasattr(one, "__members__"):
        lines += [", ".join(f"`{name}`" for name in one.__members__), ""]
    for name, said in vars(one).items():
        if isinstance(said, property) and not name.startswith("_"):
            lines += _property(f"{one.__name__}.{name}", said)
    for name, method in vars(one).items():
        if not name.startswith("_") and isinstance(method, FunctionType) and method.__doc__:
            lines += _function(f"{one.__name__}.{name}", method, "####")
    return lines


def _property(title: str, one: property) -> list[str]:
    getter = one.fget
    if getter is None:
        return []
    returns = _node(getter).returns
    lines = [f"#### {title}", "", "```python", f"{title}: {_words(returns)}", "```", ""]
    return [*lines, *_sections(inspect.getdoc(getter) or "")]
