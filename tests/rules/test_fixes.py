"""What a fix says is done, and the finding goes: commands are run, and code is executed."""

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

import pytest
import torch
from command_runs import run_in_process
from rules.cases import CASES, Case
from safetensors.torch import load_file, save_file
from torch import nn

from ckptool import api
from ckptool.rules import RULES

for _file in sorted(Path(__file__).parent.glob("cases_*.py")):
    import_module(f"rules.{_file.stem}")

PROSE = {
    "CK230": "the cause is in the user's script",
    "CK231": "the cause is in the user's script",
    "CK232": "names the commands that look into the file, which the run only knows by its path",
    "CK233": "the line of the constructor, as for CK101, and then a new file",
    "CK234": "the line of the constructor, as for CK101",
    "CK238": "the tie is in the user's script",
    "CK330": "the line of the constructor, as for CK101, and then a new file",
    "CK331": "the call of torch.save is in the user's script",
    "CK332": "the call of torch.save is in the user's script",
    "CK333": "the call of torch.save is in the user's script",
    "CK334": "refers to the other findings",
    "CK335": "the script saves it and sets it when it is resumed",
    "CK336": "changes the object's own state_dict()",
    "CK337": "changes the object's own load_state_dict()",
    "CK328": "the entry of the configuration is corrected or removed",
    "CK329": "a module, or the older checkpoint, is given to the gate",
    "CK105": "persistent=False is where the buffer is registered",
    "CK106": "nothing is to be done, or persistent=False to be dropped",
    "CK107": "the attribute becomes a buffer, and forward changes it in place",
    "CK109": "looks the tensor up where it is used",
    "CK112": "the shape is the author's",
    "CK113": "`ckptool audit` lists the state; what becomes of it is the author's",
    "CK114": "changes the module's own loading code",
    "CK201": "the tensor is in another file, or is trained",
    "CK207": "the constructor's arguments are the user's",
    "CK208": "the dtype is a decision",
    "CK210": "refers to the other findings",
    "CK219": "quantises a module, or takes another file",
    "CK221": "changes the plan",
    "CK222": "changes the override",
    "CK223": "needs the code that wrote the file",
    "CK226": "needs the code that uses the file",
    "CK227": "initialises the buffer in the module's own code",
    "CK228": "nothing, or a load by hand",
    "CK229": "loads with an argument, or saves under another name",
    "CK235": "takes tensors from another file",
    "CK236": "takes another configuration, or another file",
    "CK237": "loads with another library",
    "CK306": "the file is fetched again",
    "CK311": "another container, or a decision on the tensor",
    "CK314": "the part is saved elsewhere",
    "CK315": "packs the weights after loading",
    "CK316": "a value of another kind is a decision",
    "CK317": "removes a file",
    "CK320": "runs DeepSpeed's script, or saves again",
    "CK321": "runs the framework's script",
    "CK327": "saves again, with values",
    "CK401": "an older checkpoint",
    "CK402": "runs the model in training",
    "CK403": "copies in the training code",
    "CK405": "initialises in the code that saves",
    "CK503": "keeps the tie where it is",
    "CK601": "fetches a shard",
    "CK602": "fetches a shard",
    "CK603": "removes a file",
    "CK604": "saves again on all ranks",
    "CK701": "changes the module",
    "CK702": "ties in the module",
    **dict.fromkeys(("CK801", "CK802", "CK803", "CK804", "CK805", "CK806"), "on releases"),
    **dict.fromkeys(("CK851", "CK853", "CK856", "CK857"), "on policies"),
    **dict.fromkeys(("CK858", "CK859", "CK860"), "on policies"),
}
"""Rules whose fix asks for a decision, or for code that is not here: code -> what is asked for."""
RUN = sorted({case.code for case in CASES} - PROSE.keys())
NOT_HERE = {
    "CK217-fires-plain_into_spectral_norm": "u and v are estimates of training",
    "CK217-fires-plain_into_orthogonal": "only the code of the parametrization tells",
    "CK218-fires-pieces_of_several_sizes": "the order within the fused tensor is looked up",
    "CK301-fires-namespace": "the name is allowed in the process that loads",
    "CK301-fires-a_path_of_another_system": "as above; test_known_files.py runs it",
    "CK501-fires-tied_file_and_a_module_without_the_tie": "the module is tied",
}
"""Cases of other rules in which the fix is no command and no code for this file."""
_COMMAND = re.compile(r"ckptool (?:migrate|convert) [^;`]*(?:--\w+ '[^']*'[^;`]*)*")


@dataclass
class Calls:
    """What the case asked ckptool: the same is asked again, of the file after the fix."""

    again: list[Any] = field(default_factory=list)
    module: Any = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    at: str | None = None
    paths: tuple[Path, ...] = ()

    def ask(self, path: Path) -> set[tuple[str, str]]:
        report = self.again[-1](path)
        return {(finding.code, finding.key) for finding in report.findings}

    def build_module(self) -> nn.Module:
        if not isinstance(self.module, str):
            return deepcopy(self.module)
        package, _, name = self.module.partition(":")
        return operator.attrgetter(name)(import_module(package))(**self.kwargs)


@pytest.fixture
def calls(monkeypatch) -> Calls:
    """Record the last call of inspect, diff and audit."""
    seen = Calls()
    inspect, diff, audit = api.inspect, api.diff, api.audit

    def record_inspect(path, **options):
        seen.again.append(partial(inspect, **options))
        seen.paths, seen.module = (Path(path),), None
        return inspect(path, **options)

    def record_diff(*paths, **options):
        seen.module, seen.at = options.get("module"), options.get("at")
        seen.kwargs, seen.paths = options.get("kwargs") or {}, tuple(map(Path, paths))
        if len(paths) > 1:
            seen.again.append(lambda path: diff(paths[0], path, **options))
        else:
            seen.again.append(partial(diff, **options))
        return diff(*paths, **options)

    def record_audit(module, **options):
        seen.module, seen.kwargs = module, options.get("kwargs") or {}
        return audit(module, **options)

    monkeypatch.setattr(api, "inspect", record_inspect)
    monkeypatch.setattr(api, "diff", record_diff)
    monkeypatch.setattr(api, "audit", record_audit)
    return seen


def list_cases(*codes: str) -> list[Case]:
    return [c for c in CASES if c.fires and c.code in codes and c.name not in NOT_HERE]


def find_own(case: Case, report: Any) -> Any:
    return next(finding for finding in report.findings if finding.code == case.code)


def test_every_rule_is_run_or_is_prose():
    assert {*PROSE} | {*RUN} == {*RULES}
    runs = {*COMMANDS, *STATEMENTS, *SOURCES, *MOVES}
    assert runs == {*RUN}


COMMANDS = (
    *("CK202", "CK203", "CK205", "CK209", "CK211", "CK217", "CK224", "CK225", "CK305", "CK309"),
    *("CK302", "CK303", "CK304", "CK313", "CK322", "CK326", "CK852", "CK854", "CK855", "CK901"),
    "CK902",
)


def is_command_case(case: Case) -> bool:
    return "renamed_beyond_recognition" not in case.name


@pytest.mark.parametrize(
    "case", [*filter(is_command_case, list_cases(*COMMANDS))], ids=lambda case: case.name
)
def test_a_command_is_run_and_the_finding_goes(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    command = _COMMAND.search(finding.fix)
    assert command is not None, finding.fix
    new_path = run_migrate(command[0].strip(), tmp_path, calls, monkeypatch)
    if case.code == "CK854":
        assert new_path.suffix == ".safetensors"
        return
    if case.code in {"CK852", "CK855"}:
        assert_policy_allows(new_path, finding)
        return
    assert (case.code, finding.key) not in ask_again(calls, new_path)


def assert_policy_allows(path: Path, finding: Any) -> None:
    """Ask plain torch, with weights_only=True: there is no object; the dtype is an allowed one."""
    state = torch.load(path)
    if finding.code == "CK852":
        allowed = finding.message.partition("allows ")[2].split(",")[0]
        assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{allowed}"}


def run_migrate(command: str, tmp: Path, calls: Calls, monkeypatch) -> Path:
    """Run a `ckptool migrate` of a fix as it stands; a live module gets a name first."""
    monkeypatch.setitem(sys.modules, "live", types.SimpleNamespace(Net=calls.build_module))
    words = shlex.split(command.replace("PACKAGE.MODULE:NAME", "live:build").rstrip("."))
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


STATEMENTS = {
    "CK204": r"state_dict\.pop\(.*\)$",
    "CK206": r"operator\..*$",
    "CK209": r"state_dict = \{.*\}$",
    "CK212": r"load_state_dict\((.*)\)$",
    "CK213": r"state_dict\.pop\(.*?\)",
    "CK404": r"state_dict\.pop\(.*?\)",
    "CK214": r"state_dict\.pop\([^)]*\)",
    "CK215": r"state_dict\[.*$",
    "CK216": r"state_dict = .*$",
    "CK220": r"state_dict[.\[].*$",
    "CK225": r"\{.*\}$",
    "CK301": r"del checkpoint.*$",
    "CK308": r"state_dict\[.*clone\(\)",
    "CK310": r"save_file\(.*\)",
    "CK312": r"state_dict\[.*$",
    "CK502": r"state_dict\[[^,]*\]",
}
"""Rule -> pattern of the code within its fix."""


def list_statement_cases() -> list[Case]:
    skipped = {"CK301-fires-state_dict_without_the_call", "CK301-fires-tensors_of_pickle_dump"}
    return [case for case in list_cases(*STATEMENTS) if case.name not in skipped]


@pytest.mark.parametrize("case", list_statement_cases(), ids=lambda case: case.name)
def test_code_is_executed_and_the_finding_goes(case, tmp_path, calls):
    finding = find_own(case, case.make(tmp_path))
    code = re.search(STATEMENTS[case.code], finding.fix)
    assert code is not None, finding.fix
    new_path = execute(code[1] if code.re.groups else code[0], tmp_path, calls)
    assert (case.code, finding.key) not in calls.ask(new_path)


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
        "tensors": state_dict,
    }
    if calls.module is not None:
        names["module"] = calls.build_module()
    if code.startswith(("{", "checkpoint[")):
        names["state_dict"] = eval(code, names)
        names["checkpoint"] = names["state_dict"]
        calls.again[-1].keywords.pop("at", None)
    else:
        exec(code, names)
    if "operator." in code:
        calls.again[-1] = partial(calls.again[-1].func, module=names["module"])
    if names["state_dict"] is not state_dict:
        names["checkpoint"] = names["state_dict"]
    if is_safetensors and not new_path.exists():
        apart = {key: tensor.clone() for key, tensor in names["checkpoint"].items()}
        save_file(apart, new_path, metadata={"format": "pt"})
    elif not is_safetensors:
        torch.save(names["checkpoint"], new_path)
    return new_path


SOURCES = ("CK101", "CK102", "CK103", "CK104", "CK108", "CK110", "CK111")
"""Rules whose fix is another line in the module's source."""
_NEW_LINE = re.compile(r"In (.*?):(\d+): (.*?) instead of ([\w.]+) = \.\.\.")


@pytest.mark.parametrize("case", list_cases(*SOURCES), ids=lambda case: case.name)
def test_source_is_changed_and_the_finding_goes(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    new_line = _NEW_LINE.match(finding.fix)
    is_line = new_line is not None and isinstance(calls.module, str)
    assert is_line is (case.name not in NO_LINE), f"{finding.fix} ({calls.module})"
    if not is_line:
        return
    path, number, code, target = new_line.groups()
    line = Path(path).read_text().splitlines()[int(number) - 1]
    assert line.strip().startswith(target), line
    edited_line = code.replace("...", line.partition(" = ")[2])
    edit_line(path, int(number), edited_line, monkeypatch)
    report = api.audit(calls.module, kwargs=calls.kwargs)
    assert finding.key not in {f.key for f in report.findings if f.code == case.code}


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


NO_LINE = {
    "CK101-fires-attribute_of_a_scripted_module": "a scripted module has no source",
    "CK102-fires-forward_moves_it_itself": "the module is an instance",
    "CK102-fires-tensor_in_dataclass_and_deque": "a dataclass is no container of torch",
    "CK102-fires-tensors_in_functions_hooks_and_slots": "nor is a function",
    "CK103-fires-layer_behind_a_bound_method": "nor is a method",
    "CK103-fires-layer_in_a_closure": "nor is a closure",
}
"""Cases of these rules whose fix is no line that the test can write: name -> why."""


MOVES = ("CK218", "CK307", "CK501", "CK605")
"""Rules with a test of their own below."""


@pytest.mark.parametrize("case", list_cases("CK218"), ids=lambda case: case.name)
def test_a_plan_of_a_fix_is_run(case, tmp_path, calls):
    """All plans of the file's findings together: one operation each."""
    report = case.make(tmp_path)
    fixes = [finding.fix for finding in report.findings if finding.code == "CK218"]
    if not all("In plan.toml: " in fix for fix in fixes):
        command = _COMMAND.search(fixes[0])
        assert command is not None
        options = shlex.split(command[0])[1:]
    else:
        ops = [re.search(r"ops = \[(.*)\]$", fix)[1] for fix in fixes]
        (tmp_path / "plan.toml").write_text(f"ops = [{', '.join(ops)}]\n")
        options = ["migrate", str(calls.paths[-1]), "-o", "NEW.pth", "-m", str(calls.module)]
        options += [w for k, v in calls.kwargs.items() for w in ("-k", f"{k}={v!r}")]
        options += ["--plan", "plan.toml"]
    done = run_in_process(*options, cwd=tmp_path, PYTHONPATH=":".join(sys.path))
    assert done.code == 0, done.out + done.err
    new_path = tmp_path / options[options.index("-o") + 1]
    assert "CK218" not in {code for code, _ in calls.ask(new_path)}


def test_a_device_is_taken_off(tmp_path, calls):
    (case,) = list_cases("CK307")
    finding = find_own(case, case.make(tmp_path))
    path = calls.paths[-1]
    call = finding.fix.partition(", or")[0]
    state = eval(call, {"torch": torch, "path": path})
    torch.save(state, tmp_path / "fixed.pth")
    assert "CK307" not in {code for code, _ in calls.ask(tmp_path / "fixed.pth")}


@pytest.mark.parametrize("case", list_cases("CK501"), ids=lambda case: case.name)
def test_a_tie_that_is_left_out_loads_as_the_fix_says(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    if command := _COMMAND.search(finding.fix):
        new_path = run_migrate(command[0].strip(), tmp_path, calls, monkeypatch)
        assert (case.code, finding.key) not in calls.ask(new_path)
        return
    assert "strict=False: nothing is lost" in finding.fix
    module = calls.build_module()
    loaded = module.load_state_dict(load_file(calls.paths[-1]), strict=False)
    assert loaded.missing_keys
    state = module.state_dict()
    assert all(torch.equal(state[key], state[finding.key]) for key in loaded.missing_keys)


def test_a_key_of_the_old_file_gets_the_new_name(tmp_path, calls):
    (case,) = [case for case in list_cases("CK211") if not is_command_case(case)]
    finding = find_own(case, case.make(tmp_path))
    code = re.search(r"state_dict\[.*$", finding.fix)
    assert code is not None
    old_path, new_path = calls.paths
    state_dict = torch.load(old_path)
    exec(code[0], {"state_dict": state_dict})
    torch.save(state_dict, tmp_path / "renamed.pth")
    found = api.diff(tmp_path / "renamed.pth", new_path).findings
    assert finding.key not in {other.key for other in found}


@pytest.mark.parametrize("case", list_cases("CK605"), ids=lambda case: case.name)
def test_dropped_buffers_are_taken_from_another_file(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    torch.save(calls.build_module().state_dict(), tmp_path / "donor.pth")
    command = _COMMAND.search(finding.fix)
    assert command is not None
    command_text = command[0].strip().replace("DONOR", "donor.pth")
    new_path = run_migrate(command_text, tmp_path, calls, monkeypatch)
    found = calls.ask(new_path)
    assert not {"CK605", "CK202"} & {code for code, _ in found}


NET = (
    "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, n=2):\n"
)
NET += "        super().__init__()\n        self.fc = nn.Linear(n, n)\n        {line}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder `src` with a module `lib_net`, and a file of it without its mask."""
    (tmp_path / "src").mkdir()
    write_net(tmp_path, 'self.register_buffer("mask", torch.eye(n))')
    state = nn.Linear(3, 3).state_dict()
    torch.save({"model": {f"fc.{k}": v for k, v in state.items()}, "epoch": {}}, tmp_path / "a.pth")
    return tmp_path


def write_net(folder: Path, line: str) -> None:
    (folder / "src" / "lib_net.py").write_text(NET.format(line=line))
    sys.modules.pop("lib_net", None)


def take_command(text: str, verb: str) -> list[str]:
    """Return the words of the command in a fix, as a shell would read them."""
    return shlex.split(re.search(rf"ckptool {verb} .*", text)[0])[1:]


@pytest.mark.process
def test_options_that_were_given_are_in_the_command(project, ckptool):
    """It left -k out, and -o NEW had no suffix."""
    (project / "kw.json").write_text('{"n": 3}')
    for given in (("-k", "n=3"), ("--kwargs", "kw.json")):
        options = ("a.pth", "-m", "lib_net:Net", *given, "-I", "src", "--at", "model")
        ran = ckptool("diff", *options, cwd=project)
        assert "CK203" in ran.out
        words = take_command(ran.out, "migrate")
        assert {"-I", "src", "n=3"} <= {*words}
        done = ckptool(*words, "--force", cwd=project)
        assert done.code == 0, done.out + done.err
        result = words[words.index("-o") + 1]
        assert result == "a-migrated.pth"
        again = ckptool("diff", result, *options[1:-2], cwd=project)
        assert again.code == 0, again.out


@pytest.mark.process
def test_a_change_is_accepted_in_the_lock(project, ckptool):
    """CK802 and CK803 did not say how."""
    options = ("-m", "lib_net:Net", "-k", "n=3", "-I", "src")
    assert ckptool("lock", *options, "-o", "net.lock.json", cwd=project).code == 0
    for line, code in (
        ('self.register_buffer("mask", torch.ones(n), persistent=False)', "CK803"),
        ('self.register_buffer("other", torch.ones(n))', "CK802"),
    ):
        write_net(project, line)
        ran = ckptool("gate", *options, "--against", "net.lock.json", cwd=project)
        assert (ran.code, code in ran.out) == (1, True), ran.out
        fix = next(line for line in ran.out.splitlines() if "ckptool lock" in line)
        assert ckptool(*take_command(fix, "lock"), cwd=project).code == 0
        assert ckptool("gate", *options, "--against", "net.lock.json", cwd=project).code == 0


@pytest.mark.process
def test_an_outdated_baseline_is_updated(project, ckptool):
    torch.save(torch.nn.Linear(1, 1), project / "b.pth")
    words = ("gate", "b.pth", "--baseline", "known.json")
    assert ckptool(*words, "--update-baseline", cwd=project).code == 0
    torch.save(torch.nn.Linear(1, 1).state_dict(), project / "b.pth")
    ran = ckptool(*words, cwd=project)
    assert "CK859" in ran.out
    assert ckptool(*take_command(ran.out, "gate"), cwd=project).code == 0
    assert "CK859" not in ckptool(*words, cwd=project).out


def test_code_is_for_the_object_that_holds_the_tensor(project, monkeypatch):
    """An attribute that a parent sets, and one of a package: no line of the owner's class."""
    write_net(project, "self.fc.mask = torch.ones(n)")
    monkeypatch.syspath_prepend(project / "src")
    finding = next(f for f in api.audit("lib_net:Net").findings if f.code == "CK101")
    assert 'self.fc.register_buffer("mask", ..., persistent=False) instead of self.fc.mask' in (
        finding.fix
    )
    package = project / "site-packages"
    package.mkdir()
    source = NET.format(line="self.mask = torch.ones(n)")
    (package / "packaged_net.py").write_text(source)
    monkeypatch.syspath_prepend(package)
    finding = next(f for f in api.audit("packaged_net:Net").findings if f.code == "CK101")
    assert "belongs to an installed package" in finding.fix
    module = import_module("packaged_net").Net()
    exec(finding.fix.partition("building the module: ")[2], {"module": module, "torch": torch})
    assert "CK101" not in {f.code for f in api.audit(module).findings}
    assert module.state_dict().keys() == nn.ModuleDict({"fc": nn.Linear(2, 2)}).state_dict().keys()


def test_unexpected_keys_of_one_subtree_are_dropped_by_one_line(tmp_path):
    """It said state_dict.pop("layers.*.k.bias")."""
    module = nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))})
    bare = nn.ModuleDict(
        {"layers": nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))}
    )
    for extra in ({}, {f"head.{i}.w": torch.ones(1) for i in range(3)}):
        state_dict = {**module.state_dict(), **extra}
        torch.save(state_dict, tmp_path / "m.pth")
        fixes = {f.fix for f in api.diff(tmp_path / "m.pth", module=bare).findings}
        names: dict[str, Any] = {"state_dict": dict(state_dict), "module": bare}
        for fix in fixes:
            if code := re.search(r"state_dict(\.pop\(| = ).*", fix):
                assert "*" not in code[0]
                exec(code[0], names)
        bare.load_state_dict(names["state_dict"])


class Unknown:
    """An object of training code in a checkpoint."""


class Dangerous:
    def __reduce__(self):
        return pathlib.os.system, ("touch ran",)


@pytest.mark.parametrize("extra", [Unknown, Dangerous])
def test_a_file_without_the_global_is_written(extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = nn.Linear(2, 3).state_dict()
    torch.save({"model": state, "extra": extra(), "epoch": 3}, "x.pth")
    (finding,) = (f for f in api.inspect("x.pth").findings if f.code == "CK301")
    command = _COMMAND.search(finding.fix)
    assert command is not None, finding.fix
    done = run_in_process(*shlex.split(command[0])[1:], cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    written = torch.load("x-converted.pth", weights_only=True)
    assert written["epoch"] == 3
    assert all(torch.equal(written["model"][key], state[key]) for key in state)
    assert not Path("ran").exists()
    assert "CK301" not in {f.code for f in api.inspect("x-converted.pth").findings}
