"""action.yml, its steps run as GitHub's runner runs them: bash, and inputs in the environment."""

import json
import re

import pytest
import yaml
from command_runs import Ran
from paths import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{ *([a-z_.-]+) *\}\}")


def run_action(project, **inputs: str) -> Ran:
    """Run every step with what `inputs` says; the first that fails ends it, as on a runner."""
    known = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
    values = {f"inputs.{name}": text for name, text in {**known, **inputs}.items()}
    values["github.action_path"] = str(ROOT)
    out = err = ""
    for step in STEPS:
        said = {
            name: EXPRESSION.sub(lambda match: values[match[1]], text)
            for name, text in step.get("env", {}).items()
        }
        script = project.folder.parent / "step.sh"
        script.write_text(step["run"])
        bash = ("bash", "--noprofile", "--norc", "-eo", "pipefail", str(script))
        ran = project.run(*bash, **said)
        out, err = out + ran.out, err + ran.err
        if ran.code:
            return Ran(ran.code, out, err)
    return Ran(0, out, err)


def test_nothing_is_interpolated_into_a_script():
    assert ACTION["runs"]["using"] == "composite"
    for step in STEPS:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


def test_it_fails_the_reference_case_and_passes_after_migrate(project):
    old = run_action(project, paths="*.pth", install="false", sarif="gate.sarif", junit="gate.xml")
    assert old.code == 1, old.err
    assert "::error title=CK203 missing-recomputable-buffer,file=attention.py" in old.out
    sarif = json.loads((project.folder / "gate.sarif").read_text())
    assert {r["ruleId"] for r in sarif["runs"][0]["results"]} == {"CK203", "CK851"}
    assert (project.folder / "gate.xml").read_text().count("<failure") == 1
    project.migrate()
    new = run_action(project, paths="\n  model.pth  \n\n", install="false")
    assert new.code == 0, new.out + new.err
    assert "::error" not in new.out


def test_what_matches_nothing_could_not_be_checked(project):
    ran = run_action(project, paths="release/*.pth", install="false")
    assert ran.code == 2
    assert "release/*.pth: nothing matches this pattern" in ran.err


@pytest.mark.parametrize("paths", ["", "\n", "  \n\t\n"])
def test_no_path_is_an_error_although_a_lock_is_configured(project, paths):
    (project.folder / "ckptool.toml").write_text(
        '[[models]]\npath = "*"\nmodule = "torch.nn:Identity"\nagainst = "torch.nn:Identity"\n'
    )
    ran = run_action(project, paths=paths, install="false")
    assert ran.code == 2
    assert "::error title=ckptool gate::paths names no checkpoint" in ran.out


def test_its_inputs_are_ckptools(project):
    (project.folder / "other.toml").write_text("[require]\nsafetensors = true\n")
    ran = run_action(project, paths="model.pth", policy="other.toml", install="false")
    assert "CK854" in ran.out
    ran = run_action(
        project, paths="model.pth", policy="other.toml", install="false", **{"fail-on": "never"}
    )
    assert ran.code == 0
    module = run_action(project, paths="model.pth", module="nowhere:Net", install="false")
    assert (module.code, "nowhere" in module.err) == (2, True)
    baseline = run_action(project, paths="model.pth", baseline="none.json", install="false")
    assert (baseline.code, "none.json" in baseline.err) == (2, True)


@pytest.mark.parametrize(
    "hostile", ["$(touch gotcha)", "`touch gotcha`", "; touch gotcha", '"; touch gotcha #']
)
def test_inputs_are_words_and_never_code(project, hostile):
    for name in ("paths", "module", "policy", "baseline", "sarif", "fail-on"):
        inputs = {"paths": "model.pth", name: hostile}
        run_action(project, install="false", **inputs)
        assert not (project.folder / "gotcha").exists()


def test_a_path_that_looks_like_an_option_is_a_path(project):
    ran = run_action(project, paths="--exit-zero", install="false")
    assert ran.code == 2
    assert "--exit-zero: no such file" in ran.err
