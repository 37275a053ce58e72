"""What the tests of fixes have in common: a case is made, and its fix is run or executed."""

import collections
import operator
import pathlib
import re
import shlex
import sys
import types
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from command_runs import run_in_process
from rules.cases import CASES, Case
from safetensors.torch import load_file, save_file
from torch import nn

for _file in sorted(Path(__file__).parents[1].glob("cases_*.py")):
    import_module(f"rules.{_file.stem}")

NOT_HERE = {
    "CK217-fires-plain_into_spectral_norm": "u and v are estimates of training",
    "CK217-fires-plain_into_orthogonal": "only the code of the parametrization tells",
    "CK218-fires-pieces_of_several_sizes": "the order within the fused tensor is looked up",
    "CK301-fires-namespace": "the name is allowed in the process that loads",
    "CK301-fires-a_path_of_another_system": "as above; test_known_files.py runs it",
    "CK222-fires-an_override_filters_shapes": "the file has a tensor of another shape",
    "CK235-fires-tensors_that_do_not_fit": "tensors of two saves: another file is needed",
    "CK501-fires-tied_file_and_a_module_without_the_tie": "the module is tied",
}
"""Cases of other rules in which the fix is no command and no code for this file."""

_COMMAND = re.compile(r"ckptool (?:migrate|convert) (?:'[^']*'|(?!\. )[^;`'])*")


@dataclass
class Calls:
    """What the case asked ckptool: the same is asked again, of the file after the fix."""

    again: list[Any] = field(default_factory=list)
    module: Any = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    at: str | None = None
    paths: tuple[Path, ...] = ()
    original: dict[str, Any] = field(default_factory=dict)
    """The tensors of the file that the case's file was converted from."""

    def ask(self, path: Path) -> set[tuple[str, str]]:
        report = self.again[-1](path)
        return {(finding.code, finding.key) for finding in report.findings}

    def build_module(self) -> nn.Module:
        if not isinstance(self.module, str):
            return deepcopy(self.module)
        package, _, name = self.module.partition(":")
        return operator.attrgetter(name)(import_module(package))(**self.kwargs)


def list_cases(*codes: str) -> list[Case]:
    return [c for c in CASES if c.fires and c.code in codes and c.name not in NOT_HERE]


def find_own(case: Case, report: Any) -> Any:
    return next(finding for finding in report.findings if finding.code == case.code)


def find_command(finding: Any) -> str:
    """Return the `ckptool migrate` or `ckptool convert` of a fix, as it would be pasted."""
    command = _COMMAND.search(finding.fix)
    assert command is not None, finding.fix
    return command[0].strip()


def run_migrate(command: str, tmp: Path, calls: Calls, monkeypatch) -> Path:
    """Run a `ckptool migrate` of a fix as it stands; a live module gets a name first."""
    monkeypatch.setitem(sys.modules, "live", types.SimpleNamespace(Net=calls.build_module))
    if "DONOR" in command:
        torch.save(calls.build_module().state_dict(), tmp / "donor.pth")
    command = command.replace("DONOR", "donor.pth").replace("PACKAGE.MODULE:NAME", "live:build")
    words = shlex.split(command.rstrip("."))
    if "live:build" in words:
        words[words.index("live:build")] = write_live_module(calls, tmp)
    done = run_in_process(*words[1:], cwd=tmp, PYTHONPATH=":".join(sys.path))
    assert done.code == 0, done.out + done.err
    return tmp / words[words.index("-o") + 1]


def write_live_module(calls: Calls, tmp: Path) -> str:
    torch.save(calls.module, tmp / "live_module.bin")
    lines = ("import torch", "def build():", "    path = {!r}")
    code = "\n".join(lines).format(str(tmp / "live_module.bin"))
    code += "\n    return torch.load(path, weights_only=False)\n"
    (tmp / "live_module.py").write_text(code)
    return "live_module:build"


def ask_again(calls: Calls, path: Path) -> set[tuple[str, str]]:
    """Ask the same of the migrated file; a place that it has no more is left out."""
    question = calls.again[-1]
    if isinstance(question, partial) and path.suffix == ".safetensors":
        question.keywords.pop("at", None)
    return calls.ask(path)


def execute(code: str, tmp: Path, calls: Calls) -> Path:
    """Execute code of a fix on the file's objects, and save them again."""
    path = calls.paths[-1]
    is_safetensors = path.suffix == ".safetensors"
    checkpoint = load_file(path) if is_safetensors else torch.load(path, weights_only=False)
    place = [step for step in (calls.at or "").split(".") if step]
    state_dict = checkpoint
    for step in place:
        state_dict = state_dict[step]
    if isinstance(state_dict, nn.Module):
        state_dict = state_dict.state_dict()
    new_path = tmp / f"fixed{path.suffix}"
    names: dict[str, Any] = {
        "torch": torch,
        "collections": collections,
        "operator": operator,
        "pathlib": pathlib,
        "checkpoint": checkpoint,
        "state_dict": state_dict,
        "save_file": save_file,
        "path": new_path,
        "original": calls.original,
        "tensors": state_dict,
    }
    if calls.module is not None:
        names["module"] = calls.build_module()
    if code.startswith(("{", "checkpoint[")) and ".update(" not in code:
        names["state_dict"] = eval(code, names)
        names["checkpoint"] = names["state_dict"]
        calls.again[-1].keywords.pop("at", None)
    else:
        exec(code, names)
    if "operator." in code or code.startswith("module."):
        calls.again[-1] = partial(calls.again[-1].func, module=names["module"])
    if names["state_dict"] is not state_dict:
        names["checkpoint"] = names["state_dict"]
    if is_safetensors and not new_path.exists():
        apart = {key: tensor.clone() for key, tensor in names["checkpoint"].items()}
        save_file(apart, new_path, metadata={"format": "pt"})
    elif not is_safetensors:
        torch.save(names["checkpoint"], new_path)
    return new_path


def edit_line(path: str, number: int, new_line: str, monkeypatch) -> None:
    """Give the function around a line of a module the code that it has with `new_line`."""
    lines = Path(path).read_text().splitlines()
    indent = lines[number - 1][: len(lines[number - 1]) - len(lines[number - 1].lstrip())]
    lines[number - 1] = indent + new_line
    edited_code = find_code(compile("\n".join(lines), path, "exec"), number)
    owners = [m for m in [*sys.modules.values()] if getattr(m, "__file__", None)]
    owner = next(m for m in owners if Path(m.__file__) == Path(path).absolute())
    function = operator.attrgetter(edited_code.co_qualname)(owner)
    monkeypatch.setattr(function, "__code__", edited_code)


def find_code(code: types.CodeType, number: int) -> types.CodeType:
    """Return the innermost function of a compiled module that has line `number`."""
    for part in code.co_consts:
        is_function = isinstance(part, types.CodeType) and not part.co_name.startswith("<")
        if is_function and number in covered_lines(part):
            return find_code(part, number)
    return code


def covered_lines(code: types.CodeType) -> set[int]:
    own = {line for _, _, line in code.co_lines() if line}
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return own.union(*map(covered_lines, inner))


NET = (
    "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, n=2):\n"
)
NET += "        super().__init__()\n        self.fc = nn.Linear(n, n)\n        {line}\n"


def write_net(folder: Path, line: str) -> None:
    (folder / "src" / "lib_net.py").write_text(NET.format(line=line))
    sys.modules.pop("lib_net", None)


def take_command(text: str, verb: str) -> list[str]:
    """Return the words of the command in a fix, as a shell would read them."""
    command = re.search(rf"ckptool {verb} (?:'[^']*'|(?!\. )[^;'\n])*", text)
    assert command is not None, text
    return shlex.split(command[0].rstrip("."))[1:]
