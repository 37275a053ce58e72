"""The gate as a process: against locks, old files and old modules, with fixtures and outputs."""

import json

import pytest
import torch
from compare import models
from paths import ROOT

from ckptool import api

SAID = ("--select", "CK8,CK329", "--format", "json")


@pytest.fixture
def release(tmp_path):
    """A folder as a project has it: an old file, a lock, and recorded outputs."""
    torch.manual_seed(0)
    torch.save(models.First().state_dict(), tmp_path / "old.pth")
    api.lock(module="compare.models:First", output=tmp_path / "ckpt.lock.json")
    api.lock(
        tmp_path / "old.pth",
        module="compare.models:First",
        golden=tmp_path / "golden.safetensors",
        inputs="compare.models:batch",
    )
    return tmp_path


@pytest.fixture
def gate(run_command, release):
    def run(*words, **options):
        tests = str(ROOT / "tests")
        ran = run_command(
            "gate", *words, *SAID, cwd=release, PYTHONPATH=f"{ROOT}:{tests}", **options
        )
        report = json.loads(ran.out) if ran.out else {}
        codes = [(f["code"], f["key"], f["level"]) for f in report.get("findings", ())]
        return ran, report, codes

    return run


@pytest.mark.parametrize("against", ["ckpt.lock.json", "old.pth", "compare.models:First"])
@pytest.mark.parametrize(
    ("name", "code", "found"),
    [
        ("Same", 0, []),
        ("WithTable", 0, [("CK802", "table", "warning")]),
        ("Wider", 1, [("CK804", "body.bias", "error"), ("CK804", "body.weight", "error")]),
    ],
)
def test_a_module_alone_against_whatever_was_kept(gate, against, name, code, found):
    ran, report, codes = gate("-m", f"compare.models:{name}", "--against", against)
    assert (ran.code, codes) == (code, found)
    (one,) = report["checkpoints"]
    assert (one["path"], one["module"]) == (f"compare.models:{name}", f"compare.models:{name}")
    assert one["promises"][0]["what"] == "against"
    assert report["verdict"].startswith("gate passed: the module" if not code else "gate failed")


def test_a_file_alone_against_a_lock(gate, release):
    state = models.First().state_dict()
    del state["mask"]
    torch.save(state, release / "new.pth")
    ran, _, codes = gate("new.pth", "--against", "ckpt.lock.json")
    assert (ran.code, codes) == (1, [("CK801", "mask", "error")])
    ran, _, codes = gate("old.pth", "--against", "ckpt.lock.json")
    assert (ran.code, codes) == (0, [])


def test_fixtures_prove_that_old_files_get_there(gate):
    words = ("-m", "compare.models:Registered", "--against", "ckpt.lock.json")
    ran, _, codes = gate(*words)
    assert codes == [("CK803", "scale", "error")]
    ran, report, codes = gate(*words, "--fixtures", "old*.pth")
    assert (ran.code, codes) == (0, [("CK803", "scale", "note")])
    assert report["checkpoints"][0]["promises"][1] == {
        "what": "fixture",
        "name": "old.pth",
        "result": "migrates: inject scale float32[4]",
        "reason": "",
    }


def test_an_old_file_may_keep_its_state_elsewhere(gate, release):
    torch.save({"model": models.Registered().state_dict()}, release / "new.pth")
    words = ("new.pth", "-m", "compare.models:Registered", "--at", "model", "--fixtures", "old.pth")
    ran, report, codes = gate(*words)
    assert (ran.code, codes) == (0, [])
    assert report["checkpoints"][0]["promises"][0]["result"].startswith("migrates: inject scale")


def test_a_file_that_has_the_key_proves_nothing_about_those_that_lack_it(gate, release):
    torch.save(models.Registered().state_dict(), release / "newer.pth")
    words = ("-m", "compare.models:Registered", "--against", "ckpt.lock.json")
    _, _, codes = gate(*words, "--fixtures", "newer.pth")
    assert codes == [("CK803", "scale", "error")]


def test_a_fixture_without_a_way_and_the_plan_that_is_one(gate, release):
    words = (
        "-m",
        "compare.models:WithHead",
        "--against",
        "ckpt.lock.json",
        "--fixtures",
        "old.pth",
    )
    ran, _, codes = gate(*words)
    assert ran.code == 1
    assert codes == [
        ("CK802", "head.bias", "error"),
        ("CK802", "head.weight", "error"),
        ("CK806", "old.pth", "error"),
    ]
    plan = "".join(
        f'[[ops]]\nop = "inject"\nkey = "head.{key}"\nsource = "zeros"\ndtype = "float32"\n'
        f"shape = {shape}\n"
        for key, shape in (("weight", [1, 4]), ("bias", [1]))
    )
    (release / "plan.toml").write_text(plan)
    ran, report, codes = gate(*words, "--plan", "plan.toml")
    assert ran.code == 0, ran.out
    assert {code for code, _, _ in codes} == {"CK802"}
    assert {level for _, _, level in codes} == {"note"}
    assert "migrates by plan.toml" in report["checkpoints"][0]["promises"][1]["result"]


def test_a_hook_that_upgrades_old_files_is_proved_by_one(gate):
    words = ("-m", "compare.models:Upgrading", "--against", "ckpt.lock.json")
    _, _, codes = gate(*words)
    assert {level for _, _, level in codes} == {"warning"}
    ran, report, codes = gate(*words, "--fixtures", "old.pth")
    assert {level for _, _, level in codes} == {"note"}
    assert report["checkpoints"][0]["promises"][1]["result"] == "loads strictly"
    assert ran.code == 0


@pytest.mark.parametrize(("name", "found"), [("Same", []), ("Drifting", ["CK805"])])
def test_recorded_outputs(gate, name, found):
    ran, report, codes = gate(
        "old.pth", "-m", f"compare.models:{name}", "--golden", "golden.safetensors"
    )
    assert ([code for code, _, _ in codes], ran.code) == (found, bool(found))
    (promise,) = report["checkpoints"][0]["promises"]
    assert promise["result"] == ("cpu: drifts" if found else "cpu: the same")


def test_what_is_not_run_is_said_and_fails(gate):
    ran, report, codes = gate(
        "-m", "compare.models:Same", "--against", "ckpt.lock.json", "--golden", "golden.safetensors"
    )
    said = {s["what"]: s["reason"] for s in report["skipped"]}
    assert said["golden.safetensors"] == "skipped: golden outputs need a checkpoint"
    assert (ran.code, codes) == (1, [("CK329", "golden.safetensors", "error")])
    ran, report, codes = gate("old.pth", "--golden", "golden.safetensors", "--fixtures", "old.pth")
    said = {s["what"]: s["reason"] for s in report["skipped"]}
    assert said["golden.safetensors"] == "no module was given: use -m package.module:Name"
    assert ran.code == 1
    assert {key for _, key, _ in codes} == {"golden.safetensors", "old.pth"}


def test_of_several_checkpoints_outputs_are_of_the_one_that_they_were_recorded_with(gate, release):
    torch.manual_seed(9)
    torch.save(models.First().state_dict(), release / "other.pth")
    ran, report, codes = gate(
        "old.pth", "other.pth", "-m", "compare.models:Same", "--golden", "golden.safetensors"
    )
    assert (ran.code, codes) == (0, [])
    said = {s["what"]: s["reason"] for s in report["skipped"]}
    assert said["golden.safetensors with other.pth"] == "it is of old.pth"


def test_the_configuration_says_it_all(gate, release):
    (release / "ckptool.toml").write_text(
        """
        [[models]]
        path = "*.pth"
        module = "compare.models:Drifting"
        against = "ckpt.lock.json"
        fixtures = ["old*.pth"]
        golden = ["golden.safetensors"]
        """
    )
    ran, report, codes = gate("old.pth")
    assert (ran.code, codes) == (1, [("CK805", "old.pth", "error")])
    assert [p["what"] for p in report["checkpoints"][0]["promises"]] == [
        "against",
        "fixture",
        "golden",
    ]


def test_without_a_checkpoint_every_configured_module_is_held_to_its_lock(gate, release):
    (release / "ckptool.toml").write_text(
        """
        [[models]]
        path = "a.pth"
        module = "compare.models:Same"
        against = "ckpt.lock.json"

        [[models]]
        path = "b.pth"
        module = "compare.models:Wider"
        against = "ckpt.lock.json"

        [[models]]
        path = "c.pth"
        module = "compare.models:WithHead"
        """
    )
    ran, report, codes = gate()
    assert ran.code == 1
    assert [c["path"] for c in report["checkpoints"]] == [
        "compare.models:Same",
        "compare.models:Wider",
    ]
    assert report["verdict"] == "gate failed: 1 of 2 modules"
    assert codes == [("CK804", "body.bias", "error"), ("CK804", "body.weight", "error")]


@pytest.mark.parametrize("form", ["junit", "sarif", "github", "gitlab", "markdown"])
def test_a_module_alone_in_every_format(run_command, release, form):
    words = ("-m", "compare.models:WithoutNorm", "--against", "ckpt.lock.json", "--format", form)
    ran = run_command("gate", *words, cwd=release, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert (ran.code, ran.err) == (1, "")
    assert "CK801" in ran.out
    assert "norm.weight" in ran.out.replace("\\", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("-m", "compare.models:Same"),
            "no checkpoint was given, here or in [[tool.ckptool.models]]: ckptool gate PATH...",
        ),
        (("-m", "compare.models:Same", "--against", "none.json"), "none.json"),
        (
            ("-m", "compare.models:Same", "--against", "compare.models:Nothing"),
            "compare.models has no 'Nothing'",
        ),
        (
            ("-m", "compare.models:Same", "--fixtures", "none*.pth"),
            "--fixtures none*.pth: no file matches",
        ),
        (
            ("-m", "compare.models:WithHead", "--fixtures", "old.pth", "--plan", "none.toml"),
            "none.toml: no such file",
        ),
        (("old.pth", "--golden", "old.pth"), "old.pth: is not a golden file"),
    ],
)
def test_one_line_says_what_is_wrong(gate, words, said):
    ran, _, _ = gate(*words)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
