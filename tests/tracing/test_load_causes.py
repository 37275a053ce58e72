"""A prefix that explains the keys of a load: one finding, and fixes that are pasted and run."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from tracing.conftest import run_traced

pytestmark = pytest.mark.process

SCRIPT = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width, depth=2, *, names=("a", "b")):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


class Task(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Net(4, 3)


def wrap(how):
    net = Net(4, depth=3)
    return {
        "parallel": nn.DataParallel,
        "compiled": torch.compile,
        "task": lambda net: Task(),
        "both": lambda net: nn.DataParallel(torch.compile(net)),
    }[how](net)


def main(how):
    torch.manual_seed(0)
    torch.save({"epoch": 3, "state": {"model": wrap(how).state_dict()}}, "ckpt.pt")
    state_dict = torch.load("ckpt.pt")["state"]["model"]
    Net(4, depth=3).load_state_dict(state_dict, strict=False)
    try:
        Net(4, depth=3).load_state_dict(state_dict)
    except RuntimeError:
        pass


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
"""
PREFIXES = {
    "parallel": ["module."],
    "compiled": ["_orig_mod."],
    "task": ["model."],
    "both": ["module.", "_orig_mod."],
}


@pytest.mark.parametrize("how", PREFIXES)
def test_a_prefix_is_one_finding_and_its_fixes_work(how, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    run = run_traced([sys.executable, "train.py", how], folder)
    assert run.code == 0
    findings = [f for f in run.report["findings"] if f["code"] in {"CK230", "CK231", "CK232"}]
    assert [finding["code"] for finding in findings] == ["CK230", "CK232"]
    monkeypatch.chdir(folder)
    state_dict = torch.load("ckpt.pt")["state"]["model"]
    for number, finding in enumerate(findings):
        for prefix in PREFIXES[how]:
            assert f"`{prefix}`" in finding["message"]
        code, _, command = finding["fix"].partition("; or write a file that loads: ")
        values = {"state_dict": state_dict}
        exec(code, values)
        expected = {k.replace("module.", "").replace("_orig_mod.", ""): k for k in state_dict}
        expected = {k.removeprefix("model."): v for k, v in expected.items()}
        assert values["state_dict"].keys() == expected.keys()
        words = shlex.split(command)
        assert {"-k", "width=4", "depth=3", "--at", "state.model"} <= {*words}
        assert not any(word.startswith("names=") for word in words)  # it has its default
        words = [word.replace("ckpt-migrated", f"new{number}") for word in words]
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        path = re.search(r"-> (\S+)", done.stdout)[1]
        loaded = torch.load(path)["state"]["model"]
        assert {k: v.tolist() for k, v in loaded.items()} == {
            new: state_dict[old].tolist() for new, old in expected.items()
        }
