"""Modules of public packages -> what `audit` and `diff` say of them, to be judged by hand.

Run it in an environment of its own, with the packages beside ckptool's dependencies:
`PYTHONPATH=. python benchmarks/audit_check.py --all timm x_transformers`. No weights are loaded.
Of each package it takes the models listed in audit_models.py, and with `--all` also every class
whose constructor can be served from a table of argument names. Each is examined by name and live;
its state_dict is saved and compared with it, that of a listed model also after `.half()` and in
`.train()`. Each package runs in a process of its own. What was found goes to a file of JSON lines.
"""

import argparse
import copy
import importlib
import inspect
import json
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from audit_models import ARGUMENTS, MODELS, Entry, found
from torch import nn

import ckptool
from ckptool.errors import CkptoolError

LIMIT = 90
"""Seconds for one module."""
SLOW = 5.0


def main() -> int:
    """Check the packages named, or all that are listed; 1 where ckptool failed on one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("packages", nargs="*")
    parser.add_argument("--json", type=Path, default=Path("audit_check.jsonl"))
    parser.add_argument("--all", action="store_true", help="all classes, not only listed models")
    parser.add_argument("--here", action="store_true", help="in this process, one package")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.here:
        return check(given.packages[0], given.json, every=given.all)
    for package in given.packages or MODELS:
        command = [sys.executable, __file__, "--here", "--json", str(given.json), package]
        subprocess.run([*command, *(["--all"] if given.all else [])], check=False)
    return summary(given.json)


def check(package: str, to: Path, *, every: bool) -> int:
    listed = MODELS.get(package, [])
    entries = [*listed, *(classes(package) if every else [])]
    with to.open("a") as file:
        for place, (target, kwargs) in enumerate(entries):
            row = {"package": package, "target": target, "kwargs": repr(kwargs)[:200]}
            signal.signal(signal.SIGALRM, out_of_time)
            signal.alarm(LIMIT)
            try:
                row |= one(target, kwargs, thorough=place < len(listed))
            except Slow:
                row["problem"] = f"more than {LIMIT} s"
            finally:
                signal.alarm(0)
            print(json.dumps(row), file=file, flush=True)
    return 0


class Slow(BaseException):
    """One module took too long."""


def out_of_time(*_: object) -> None:
    raise Slow


def classes(package: str) -> Iterator[Entry]:
    """Yield what of `package` can be built with the arguments that are known by name."""
    known: set[type] = set()
    for module in modules(package):
        for _, cls in sorted(vars(module).items()):
            ours = isinstance(cls, type) and issubclass(cls, nn.Module)
            if not ours or cls in known or cls.__module__.partition(".")[0] != package:
                continue
            known.add(cls)
            given = arguments(cls)
            if given is not None and cls.__qualname__.isidentifier():
                yield f"{cls.__module__}:{cls.__qualname__}", given


def modules(package: str) -> Iterator[Any]:
    top = importlib.import_module(package)
    yield top
    for info in pkgutil.walk_packages(getattr(top, "__path__", []), f"{package}.", lambda _: None):
        if any(
            part in info.name
            for part in (".test", ".cli", ".train", "__main__", ".scripts", ".setup")
        ):
            continue
        try:
            yield importlib.import_module(info.name)
        except (Exception, SystemExit):  # noqa: BLE001
            continue


def arguments(cls: type) -> dict[str, Any] | None:
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (ValueError, TypeError):
        return None
    given = {}
    for one in parameters:
        if one.kind in {one.VAR_POSITIONAL, one.VAR_KEYWORD}:
            continue
        needed = one.default is one.empty
        if needed and one.name not in ARGUMENTS:
            return None
        if needed or (
            one.name in ARGUMENTS
            and type(one.default) is type(ARGUMENTS[one.name])
            and not isinstance(one.default, bool)
        ):
            given[one.name] = ARGUMENTS[one.name]
    return given


def one(target: str, kwargs: dict[str, Any], *, thorough: bool) -> dict[str, Any]:
    """Return what was found of one module, and how long it took."""
    start = time.perf_counter()
    try:
        module = found(target)(**kwargs)
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return {"unbuilt": f"{type(error).__name__}: {error}"[:200]}
    if not isinstance(module, nn.Module):
        return {"unbuilt": "no module"}
    row: dict[str, Any] = {"build": round(time.perf_counter() - start, 3), "problems": []}
    row["parameters"] = sum(p.numel() for p in module.parameters() if not lazy(p))
    row["by_name"] = timed(row, "audit", lambda: ckptool.audit(target, kwargs=kwargs))
    row["live"] = timed(row, "audit_live", lambda: ckptool.audit(module))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        for step in ("as_is", "train", "half") if thorough else ("as_is",):
            changed = module
            if step == "train":
                changed = module.train()
            if step == "half":
                try:
                    changed = copy.deepcopy(module).half()
                except Exception as error:  # noqa: BLE001
                    row["problems"].append(f"no half: {error}"[:200])
                    continue
            try:
                torch.save(changed.state_dict(), path)
            except Exception as error:  # noqa: BLE001
                row["problems"].append(f"not saved: {error}"[:200])
                break
            row[f"diff_{step}"] = timed(
                row, f"diff_{step}_s", lambda: ckptool.diff(path, module=target, kwargs=kwargs)
            )
            if step == "as_is":
                row["diff_live"] = timed(
                    row, "diff_live_s", lambda: ckptool.diff(path, module=module)
                )
    return row


def lazy(parameter: object) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedTensorMixin)


def timed(row: dict[str, Any], name: str, call: Callable[[], Any]) -> list[Any] | None:
    start = time.perf_counter()
    try:
        report = call()
    except CkptoolError as error:
        row["problems"].append(f"{name}: {error}"[:400])
        return None
    except Exception as error:  # noqa: BLE001
        import traceback

        row["problems"].append(
            f"CRASH {name}: {type(error).__name__}: {error} " + traceback.format_exc()[-1500:]
        )
        return None
    row[name] = round(time.perf_counter() - start, 3)
    row.setdefault("skipped", {})[name] = [f"{s.what}: {s.reason}"[:200] for s in report.skipped]
    if name.startswith("diff"):
        row.setdefault("verdicts", {})[name] = (
            str(report.verdict) if hasattr(report, "verdict") else ""
        )
    if not name.startswith("diff"):
        row.setdefault("unsaved", {})[name] = [
            [u.key, u.kind, u.constancy, u.where] for u in report.unsaved
        ]
    return [[f.code, f.level, f.key, f.message, f.fix] for f in report.findings]


def summary(path: Path) -> int:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    built = [row for row in rows if "unbuilt" not in row]
    print(
        f"{len(built)} modules of {len({r['package'] for r in built})} packages; "
        f"{len(rows) - len(built)} not built"
    )
    counted = Counter(
        (code, level) for row in built for code, level, *_ in row.get("by_name") or []
    )
    for (code, level), count in sorted(counted.items()):
        print(f"{code} {level:8} {count}")
    problems = [(row["target"], p) for row in built for p in row.get("problems", [])]
    for target, problem in problems:
        print(f"{target}: {problem.splitlines()[0]}")
    return min(1, len(problems))


if __name__ == "__main__":
    sys.exit(main())
