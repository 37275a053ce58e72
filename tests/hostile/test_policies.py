"""Ways round a policy: links, decoys, patterns. Each ends as the plain file would, or worse."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ckptool.config import PathEntry, ReleaseRequirements
from ckptool.policy import Policy
from ckptool.policy.stricter import combine_requirements
from ckptool.rules import Level

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2, 2))
"""
STRICT = """
[[models]]
path = "release/*.pth"
module = "hostile_net:Net"
[[paths]]
path = "release/*"
require = { safetensors = true }
"""
LOOSE = """
[[paths]]
path = "scratch/*"
fail-on = "never"
"""


@pytest.fixture
def project(folder):
    for name in ("release", "scratch", "store"):
        (folder / name).mkdir()
    (folder / "hostile_net.py").write_text(NET)
    torch.save({"other": torch.zeros(3)}, folder / "store" / "blob")
    torch.save({"w": torch.zeros(2, 2)}, folder / "store" / "right")
    yield folder
    sys.modules.pop("hostile_net", None)


def put(project, kind: str, source: str = "blob"):
    """Put the file in the release folder: itself, or through links of several kinds."""
    path, blob = project / "release" / "x.pth", project / "store" / source
    match kind:
        case "file":
            path.write_bytes(blob.read_bytes())
        case "relative link":
            path.symlink_to(f"../store/{source}")
        case "absolute link":
            path.symlink_to(blob)
        case "chain of links":
            (project / "scratch" / "x.pth").symlink_to(blob)
            path.symlink_to("../scratch/x.pth")
        case "hard link":
            os.link(blob, path)
        case "linked folder":
            (project / "release").rmdir()
            (project / "real").mkdir()
            (project / "real" / "x.pth").write_bytes(blob.read_bytes())
            (project / "release").symlink_to("real")
        case "link out of the project":
            far = project.parent / "far"
            far.mkdir(exist_ok=True)
            (far / "x").write_bytes(blob.read_bytes())
            path.symlink_to(far / "x")
    return path


KINDS = ["file", "relative link", "absolute link", "chain of links", "hard link"]
KINDS += ["linked folder", "link out of the project"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [STRICT, STRICT + LOOSE, LOOSE + STRICT])
def test_a_link_is_judged_as_the_file_would_be(project, run_gate, kind, policy):
    (project / "ckptool.toml").write_text(policy)
    put(project, kind)
    for given in ("release/x.pth", "./release/x.pth", "scratch/../release/x.pth"):
        code, output = run_gate(given)
        assert (code, "CK854" in output, "hostile_net:Net" in output) == (1, True, True), output


def test_a_link_out_of_a_loose_folder_is_as_strict_as_its_target(project, run_gate):
    (project / "ckptool.toml").write_text(STRICT + LOOSE)
    (put(project, "file").parent.parent / "scratch" / "y.pth").symlink_to("../release/x.pth")
    code, output = run_gate("scratch/y.pth")
    assert (code, "CK854" in output) == (1, True)


def test_a_link_into_a_loose_folder_is_no_way_out(project, run_gate):
    """The release folder has no entry of its own: the defaults hold for its names."""
    (project / "ckptool.toml").write_text(STRICT.split("[[paths]]", maxsplit=1)[0] + LOOSE)
    (project / "scratch" / "y.pth").write_bytes((project / "store" / "blob").read_bytes())
    (project / "release" / "x.pth").symlink_to("../scratch/y.pth")
    assert run_gate("release/x.pth")[0] == 1


def test_two_modules_for_two_names_are_an_error(project, run_gate):
    other = '[[models]]\npath = "store/*"\nmodule = "torch.nn:Identity"\n'
    (project / "ckptool.toml").write_text(STRICT + other)
    put(project, "relative link")
    code, output = run_gate("release/x.pth")
    assert code == 2
    assert "hostile_net:Net" in output
    assert "torch.nn:Identity" in output


def test_a_link_to_a_right_file_passes(project, run_gate):
    (project / "ckptool.toml").write_text(STRICT.split("[[paths]]", maxsplit=1)[0])
    put(project, "relative link", "right")
    assert run_gate("release/x.pth")[0] == 0


RELAXED = {"fail_on": "never", "ignore": ("CK8",)}


@pytest.mark.parametrize("order", [("release/*", "store/*"), ("store/*", "release/*")])
def test_of_two_entries_the_stricter_holds(project, order):
    put(project, "relative link")
    entries = {
        "release/*": PathEntry("release/*", **RELAXED),
        "store/*": PathEntry("store/*", fail_on="note", require=ReleaseRequirements(coverage=1.0)),
    }
    policy = Policy(paths=tuple(entries[name] for name in order), directory=project)
    held = policy.at("release/x.pth")
    assert (held.fail_on, held.reports("CK854"), held.require.coverage) == (Level.NOTE, True, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ({"strict": True}, {"strict": False}, {"strict": True}),
        ({"coverage": 0.5}, {"coverage": 0.9}, {"coverage": 0.9}),
        ({"max_size": "1 MB"}, {"max_size": "1 GB"}, {"max_size": "1 MB"}),
        ({"dtypes": ("a", "b")}, {"dtypes": ("b",)}, {"dtypes": ("b",)}),
        ({"globals": ("a.b",)}, {}, {"globals": ()}),
        ({"globals": ("a.b", "c.d")}, {"globals": ("c.d",)}, {"globals": ("c.d",)}),
        ({"safetensors": True}, {"safetensors": False}, {"safetensors": True}),
        ({"verify": ("load",)}, {"verify": ("forward",)}, {"verify": ("load", "forward")}),
        (
            {"verify": ("load",), "device": "cpu"},
            {"verify": ("load",), "device": "auto"},
            {"verify": ("load",), "device": "auto"},
        ),
    ],
)
def test_requirements_are_combined(first, second, both):
    for pair in ((first, second), (second, first)):
        combined = combine_requirements(*(ReleaseRequirements(**fields) for fields in pair))
        got = {key: getattr(combined, key) for key in both}
        assert {k: set(v) if isinstance(v, tuple) else v for k, v in got.items()} == {
            k: set(v) if isinstance(v, tuple) else v for k, v in both.items()
        }


DECOYS = {
    "extra": {"state_dict": {"weight": torch.ones(2, 2)}, "extra": {"w": torch.ones(2, 2)}},
    "root": {"weight": torch.ones(2, 2), "extra": {"w": torch.ones(2, 2)}},
    "shape": {"model": {"w": torch.ones(3)}, "ema": {"w": torch.ones(2, 2)}},
}


@pytest.mark.parametrize("kind", ["extra", "root", "shape"])
def test_a_decoy_is_no_pass(project, run_gate, kind):
    torch.save(DECOYS[kind], project / "m.ckpt")
    code, output = run_gate("m.ckpt", "-m", "hostile_net:Net")
    assert (code, "CK860" in output, "judged at" in output) == (1, True, True)


def test_the_judged_mapping_is_printed_and_may_be_named(project, run_gate):
    torch.save(DECOYS["extra"], project / "m.ckpt")
    code, output = run_gate("m.ckpt", "-m", "hostile_net:Net", "--at", "extra")
    assert (code, "m.ckpt: judged at `extra`; the file also has state_dict" in output) == (0, True)
    report = json.loads(run_gate("m.ckpt", "-m", "hostile_net:Net", "--format", "json")[1])
    assert report["checkpoints"][0]["at"] == "extra"


@pytest.mark.process
def test_a_folder_bit_is_seen_by_every_command(project):
    """One flipped bit: torch.load returned memory that was never written, without an error."""
    torch.save({"w": torch.ones(64, 64)}, project / "bit.pth")
    data = bytearray((project / "bit.pth").read_bytes())
    at = data.index(b"PK\1\2")
    while data[at : at + 4] == b"PK\1\2":
        lengths = [int.from_bytes(data[at + n : at + n + 2], "little") for n in (28, 30, 32)]
        if data[at + 46 : at + 46 + lengths[0]].endswith(b"/data/0"):
            data[at + 38] |= 0x10
        at += 46 + sum(lengths)
    (project / "bit.pth").write_bytes(data)
    for words in (
        ("inspect",),
        ("gate", "--deep"),
        ("digest",),
        ("verify", "-m", "hostile_net:Net"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ckptool", words[0], "bit.pth", *words[1:]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stdout
        assert "is marked as a folder" in done.stderr + done.stdout


@pytest.mark.parametrize(
    "policy",
    [
        'ignore = ["CK301"]', 'ignore = ["CK3"]', 'select = ["CK1"]', '[levels]\nCK301 = "note"',
        '[levels]\nCK3 = "warning"', '[[paths]]\npath = "*"\nignore = ["CK"]',
    ],
)  # fmt: skip
def test_a_rule_that_is_left_out_allows_no_name(folder, run_gate, policy):
    """A Popen passed where the policy left out notes on containers, `ignore = ["CK3"]`."""
    torch.save({"w": torch.ones(2), "run": subprocess.Popen}, folder / "x.pth")
    (folder / "ckptool.toml").write_text(policy)
    code, output = run_gate("x.pth")
    assert (code, "subprocess.Popen" in output) == (1, True), output
    allowed = '[require]\nglobals = ["subprocess.Popen"]\n'
    is_table = policy.startswith("[")
    (folder / "ckptool.toml").write_text(allowed + policy if is_table else f"{policy}\n{allowed}")
    assert run_gate("x.pth")[0] == 0
