"""What a gate judges: what is named, and without a name all that the configuration names."""

import json
from itertools import product

import pytest
import torch
from torch import nn

NETS = """
from torch import nn

def build(n=3): return nn.Sequential(nn.Linear(n, n), nn.BatchNorm1d(n))
"""
ENTRY = '[[models]]\npath = "{}"\nmodule = "nets:build"\n'


@pytest.fixture
def project(tmp_path):
    """A project with two checkpoints that load, one that does not, and files that are none."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "notes.txt").write_text("no checkpoint")
    good = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).state_dict()
    for name in ("release/a.pth", "release/b.pth", "runs/1/bad.pth", ".cache/hidden.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"nothing": torch.ones(2)} if "bad" in name else good, tmp_path / name)
    return tmp_path


@pytest.fixture
def gate(run_command, project):
    def run(*words, config=""):
        (project / "ckptool.toml").write_text(config)
        ran = run_command("gate", *words, "--format", "json", cwd=project)
        report = json.loads(ran.out) if ran.out else {"checkpoints": [], "findings": []}
        judged = {c["path"]: c["passed"] for c in report["checkpoints"]}
        return ran.code, judged, {f["key"] for f in report["findings"] if f["code"] == "CK328"}

    return run


GOOD = {"release/a.pth": True, "release/b.pth": True}
BAD = {"runs/1/bad.pth": False}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["release/*"], (0, GOOD, set())),
        (["release/a.pth", "release/*"], (0, GOOD, set())),
        (["*"], (1, GOOD | BAD, set())),
        (["runs/*"], (1, BAD, set())),
        (["*.pth"], (1, GOOD | BAD, set())),
        (["release/*", "releese/*"], (1, GOOD, {"releese/*"})),
        (["releese/*"], (1, {}, {"releese/*"})),
        (["release/c.pth"], (1, {}, {"release/c.pth"})),
        (["./release/a.pth"], (1, {}, {"./release/a.pth"})),
        (["../release/*"], (1, {}, {"../release/*"})),
        (["release/"], (1, {}, {"release/"})),
        (["RELEASE/*"], (1, {}, {"RELEASE/*"})),
        (["release/*.pt"], (1, {}, {"release/*.pt"})),
        (["*.md"], (1, {}, {"*.md"})),
        # The first entry that matches counts: the second gives no checkpoint its module.
        (["release/*", "release/a.pth"], (1, GOOD, {"release/a.pth"})),
    ],
)
def test_a_gate_without_paths_judges_what_the_configuration_names(gate, patterns, expected):
    assert gate(config="".join(map(ENTRY.format, patterns))) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["release/*.pth"], GOOD),  # quoted, as a shell does not expand it
        (["release"], GOOD),
        (["."], GOOD | BAD),
        (["r*"], GOOD | BAD),  # folders that a pattern matches are looked into
        (["**/*.pth"], GOOD | BAD),
        (["release", "release/a.pth"], GOOD),
        (["runs"], BAD),
    ],
)
def test_patterns_and_folders_name_checkpoints(gate, words, expected):
    code, judged, _ = gate(*words, config=ENTRY.format("*"))
    assert {path.removesuffix("/1"): ok for path, ok in judged.items()} == expected
    assert code == (1 if False in expected.values() else 0)


def test_a_pattern_that_matches_nothing_could_not_be_checked(gate):
    code, judged, _ = gate("release/a.pth", "q*.pth", config=ENTRY.format("*"))
    assert (code, judged) == (2, {"release/a.pth": True, "q*.pth": False})


def test_a_name_with_brackets_is_a_file(gate, project):
    (project / "release/a.pth").rename(project / "run[1].pth")
    code, judged, _ = gate("run[1].pth")
    assert (code, judged) == (0, {"run[1].pth": True})


def test_an_entry_is_matched_by_what_is_named_or_by_what_is_there(gate):
    config = "".join(map(ENTRY.format, ["release/a.pth", "runs/*", "old/*"]))
    assert gate("release/a.pth", config=config)[2] == {"old/*"}


@pytest.mark.parametrize(("pattern", "found"), [("relaese/*", {"relaese/*"}), ("rel*", set())])
def test_an_entry_of_paths_has_to_match_too(gate, pattern, found):
    config = f'[[paths]]\npath = "{pattern}"\nrequire = {{ safetensors = true }}\n'
    assert gate("runs/1/bad.pth", config=config)[::2] == (1 if found else 0, found)


REQUIRED = {"strict = true": "strict", "coverage = 0.5": "coverage"}


@pytest.mark.parametrize(("requirement", "named"), [*product(REQUIRED, [True, False])])
def test_a_requirement_that_only_a_module_can_show_fails_without_one(
    run_command, project, requirement, named
):
    entry = ENTRY.format("release/*") if named else ""
    (project / "ckptool.toml").write_text(f"{entry}[require]\n{requirement}\n")
    ran = run_command("gate", "release/a.pth", "--format", "json", cwd=project)
    found = {f["key"] for f in json.loads(ran.out)["findings"] if f["code"] == "CK329"}
    assert (ran.code, found) == ((0, set()) if named else (1, {REQUIRED[requirement]}))


def test_a_waiver_accepts_an_entry_without_a_checkpoint(gate):
    waiver = '[[waivers]]\nrule = "CK328"\nkey = "old/*"\nreason = "removed next week"\n'
    config = ENTRY.format("release/*") + ENTRY.format("old/*") + waiver
    assert gate(config=config) == (0, GOOD, set())


@pytest.mark.parametrize("change", ["", "features"])
def test_modules_alone_are_judged_by_their_state_and_their_locks(run_command, project, change):
    entry = ENTRY.format("weights-are-elsewhere/*") + 'against = "net.lock.json"\n'
    (project / "ckptool.toml").write_text(entry)
    assert run_command("lock", "--all", cwd=project).code == 0
    if change:
        (project / "nets.py").write_text(NETS.replace("nn.Linear(n, n)", "nn.Linear(n, n, False)"))
    ran = run_command("gate", "--modules-only", cwd=project)
    assert ran.code == (1 if change else 0)
    assert run_command("lock", "--all", "--check", cwd=project).code == ran.code
    assert run_command("gate", "--modules-only", "release/a.pth", cwd=project).code == 2


def test_update_takes_the_module_of_the_entry_that_has_the_lock(run_command, project):
    entry = ENTRY.format("release/*") + 'against = "net.lock.json"\n'
    (project / "ckptool.toml").write_text(entry)
    words = ("lock", "--update", "-o", "net.lock.json")
    missing = run_command(*words, cwd=project)
    assert (missing.code, "there is no lock to update" in missing.err) == (2, True)
    nothing = run_command("lock", "--all", "--update", cwd=project)
    assert (nothing.code, "there is no lock yet" in nothing.err) == (2, True)
    assert not (project / "net.lock.json").exists()
    assert run_command("lock", "--all", cwd=project).code == 0
    (project / "nets.py").write_text(NETS.replace("nn.Linear(n, n)", "nn.Linear(n, n, False)"))
    assert run_command("lock", "--all", "--check", cwd=project).code == 1
    assert run_command(*words, cwd=project).code == 0
    assert run_command("lock", "--all", "--check", cwd=project).code == 0
    other = run_command("lock", "--update", "-o", "other.lock.json", cwd=project)
    assert (other.code, other.err.count("\n")) == (2, 1)


def test_a_lock_that_does_not_exist_is_not_updated_in_silence(run_command, project):
    entries = [
        ENTRY.format(path) + f'against = "{lock}"\n'
        for path, lock in (("release/*", "a.lock.json"), ("runs/*", "b.lock.json"))
    ]
    (project / "ckptool.toml").write_text("".join(entries))
    assert run_command("lock", "--all", cwd=project).code == 0
    (project / "b.lock.json").unlink()
    ran = run_command("lock", "--all", "--update", cwd=project)
    assert (ran.code, (project / "b.lock.json").exists()) == (0, False)
    assert "not checked: b.lock.json: there is no lock to update" in ran.out


def test_two_modules_cannot_have_one_lock(run_command, project):
    entries = [
        ENTRY.format(path) + f'kwargs = {{ n = {n} }}\nagainst = "net.lock.json"\n'
        for path, n in (("release/*", 3), ("runs/*", 4))
    ]
    (project / "ckptool.toml").write_text("".join(entries))
    ran = run_command("lock", "--all", cwd=project)
    assert (ran.code, "give each its own" in ran.err) == (2, True)


def test_an_older_checkpoint_is_no_lock_to_write(run_command, project):
    config = ENTRY.format("runs/*") + 'against = "release/a.pth"\n'
    (project / "ckptool.toml").write_text(config)
    before = (project / "release/a.pth").read_bytes()
    ran = run_command("lock", "--all", cwd=project)
    assert (ran.code, "names no lock" in ran.err) == (2, True)
    assert (project / "release/a.pth").read_bytes() == before
