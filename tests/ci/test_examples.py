"""The examples in docs/examples: what they would run is run."""

import json

import yaml
from junitparser import JUnitXml
from paths import ROOT

EXAMPLES = ROOT / "docs" / "examples"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def test_the_gitlab_job_fails_the_reference_case_and_passes_after_migrate(project):
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["checkpoints"]
    reports = job["artifacts"]["reports"]
    (script,) = job["script"]
    old = project.run("bash", "-eo", "pipefail", "-c", script)
    assert old.code == 1, old.err
    quality = json.loads((project.folder / reports["codequality"]).read_text())
    assert {"CK203", "CK851"} <= {one["check_name"] for one in quality}
    assert JUnitXml.fromfile(str(project.folder / reports["junit"])).failures == 1
    assert job["artifacts"]["when"] == "always"
    project.migrate()
    assert project.run("bash", "-eo", "pipefail", "-c", script).code == 0
    assert JUnitXml.fromfile(str(project.folder / reports["junit"])).failures == 0


def test_the_github_workflow_gives_the_action_inputs_that_it_has():
    workflow = yaml.safe_load((EXAMPLES / "github-workflow.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    (gate,) = [step for step in steps if "ckptool" in step.get("uses", "")]
    assert gate["with"].keys() <= ACTION["inputs"].keys()
    (upload,) = [step for step in steps if "upload-sarif" in step.get("uses", "")]
    assert upload["with"]["sarif_file"] == gate["with"]["sarif"]
    assert upload["if"] == "always()"
