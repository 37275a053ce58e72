"""Workflows and issue forms: read by the schemas that GitHub's editors use, and by zizmor."""

import re
import shutil
import sys
import tomllib

import numpy as np
import pytest
import torch
import yaml
from paths import ROOT
from safetensors.torch import save_file
from torch import nn

GITHUB = ROOT / ".github"
WORKFLOWS = {
    path.stem: yaml.load(path.read_text("utf-8"), yaml.BaseLoader)
    for path in (GITHUB / "workflows").glob("*.yml")
}
"""Every scalar as it is written: YAML would read `on` as a truth value."""
FORMS = {
    name: yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text("utf-8"))
    for name in ("bug_report", "wrong_verdict")
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SCHEMAS = {
    "github-workflows": [".github/workflows/ci.yml", ".github/workflows/release.yml"],
    "github-issue-forms": [f".github/ISSUE_TEMPLATE/{name}.yml" for name in FORMS],
    "github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "github-actions": ["action.yml"],
}
VALUE = 12345.125
"""Exact in float32, and in no other field of a report."""


def jobs():
    return [
        (name, job, body) for name, flow in WORKFLOWS.items() for job, body in flow["jobs"].items()
    ]


def steps(workflow, job):
    return WORKFLOWS[workflow]["jobs"][job]["steps"]


def script(name):
    """Return what the step of the release's build that has this name runs."""
    (found,) = (step["run"] for step in steps("release", "build") if step.get("name") == name)
    return found


@pytest.mark.process
@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_github_fit_their_schemas(tool, schema):
    ran = tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *SCHEMAS[schema])
    assert ran.code == 0, ran.out + ran.err


@pytest.mark.process
def test_zizmor_finds_nothing_in_workflows_and_action(tool):
    ran = tool("zizmor", "--offline", "--no-progress", ".github", "action.yml")
    assert ran.code == 0, ran.out + ran.err
    if shutil.which("actionlint"):
        ran = tool("actionlint")
        assert ran.code == 0, ran.out + ran.err


def test_no_file_for_github_is_left_unchecked():
    here = {path.relative_to(ROOT).as_posix() for path in GITHUB.rglob("*.yml")}
    assert here - {".github/zizmor.yml"} <= {name for names in SCHEMAS.values() for name in names}


def test_ci_runs_the_gate_on_every_python_that_is_declared():
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    matrix = WORKFLOWS["ci"]["jobs"]["gate"]["strategy"]["matrix"]["python"]
    assert matrix == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"
    *_, setup, gate = steps("ci", "gate")
    assert setup["with"]["python-version"] == "${{ matrix.python }}"
    assert (gate["run"], gate["env"]["PYTHON"]) == (".ci/run", "python")
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    assert {"push", "pull_request"} <= set(WORKFLOWS["ci"]["on"])


def test_workflows_may_read_and_no_more_and_end():
    for name, flow in WORKFLOWS.items():
        assert flow["permissions"] == {"contents": "read"}, name
        assert "concurrency" in flow, name
        assert "secrets." not in (GITHUB / "workflows" / f"{name}.yml").read_text("utf-8")
    for name, job, body in jobs():
        assert "timeout-minutes" in body or "uses" in body, (name, job)


def test_actions_are_pinned_to_a_major_version():
    used = [s["uses"] for _, _, b in jobs() for s in b.get("steps", ()) if "uses" in s]
    assert used
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", one)


def test_the_job_that_publishes_is_the_only_one_that_can():
    asked = {
        (name, job): body["permissions"] for name, job, body in jobs() if "permissions" in body
    }
    assert asked == {("release", "publish"): {"attestations": "write", "id-token": "write"}}
    publish = WORKFLOWS["release"]["jobs"]["publish"]
    assert publish["environment"] == "pypi"
    assert set(publish["needs"]) == {"ci", "build"}
    used = [step["uses"].split("@")[0] for step in publish["steps"]]
    assert used == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]
    # Nothing of the repository is run where the identity is.
    assert not any("run" in step for step in publish["steps"])


def test_what_is_published_is_what_was_checked():
    names = [
        step.get("name", step.get("uses", "")).split("@")[0] for step in steps("release", "build")
    ]
    assert names[-3:] == [
        "Build, and check what PyPI will show",
        "Install the wheel into an empty environment, and use it",
        "actions/upload-artifact",
    ]
    upload, download = steps("release", "build")[-1], steps("release", "publish")[0]
    assert upload["with"]["name"] == download["with"]["name"]
    checks = script(names[-3]) + script(names[-2])
    for words in ("twine check --strict dist/*", "ckptool --version", "ckptool inspect"):
        assert words in checks


@pytest.mark.process
@pytest.mark.parametrize("tag", [f"v{PROJECT['version']}", "v99.0", PROJECT["version"]])
def test_a_release_needs_the_tag_of_its_version(tool, tmp_path, tag):
    assert WORKFLOWS["release"]["on"] == {"push": {"tags": ["v*"]}}
    (tmp_path / "python").symlink_to(sys.executable)
    ran = tool(
        "bash",
        "-eo",
        "pipefail",
        "-c",
        script("The tag is the version in pyproject.toml"),
        GITHUB_REF_NAME=tag,
        PATH=f"{tmp_path}:/usr/bin:/bin",
    )
    assert ran.code == (tag != f"v{PROJECT['version']}"), ran.out + ran.err
    assert ("::error::" in ran.out) == (ran.code == 1)


@pytest.mark.parametrize("name", FORMS)
def test_forms_ask_for_what_a_report_needs(name):
    fields = {one["id"]: one for one in FORMS[name]["body"] if "id" in one}
    required = {key for key, one in fields.items() if one.get("validations", {}).get("required")}
    assert {"version", "command"} <= required
    assert "ckptool --version" in fields["version"]["attributes"]["description"]
    asked = fields["inspect"]["attributes"]["description"]
    assert "ckptool inspect --format json FILE`, not the file itself" in asked
    assert "no tensor's values" in asked
    assert "metadata" in asked
    if name == "wrong_verdict":
        assert {"torch", "verdict", "inspect"} <= required


def test_links_from_forms_lead_somewhere():
    text = (GITHUB / "ISSUE_TEMPLATE" / "bug_report.yml").read_text("utf-8")
    (linked,) = re.findall(r"\(\?template=([^)]+)\)", text)
    assert (GITHUB / "ISSUE_TEMPLATE" / linked).is_file()
    config = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text("utf-8"))
    (contact,) = config["contact_links"]
    assert contact["url"] in (ROOT / "SECURITY.md").read_text("utf-8")


class Holder(nn.Module):
    """Holds the value in every way in which a module holds a tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), VALUE))
        self.mask = torch.full((2,), VALUE)
        self.register_buffer("one", torch.tensor(VALUE))


WRITERS = {
    "zip": lambda path: torch.save(
        {"state": Holder().state_dict(), "array": np.full(2, VALUE), "note": "kept"}, path
    ),
    "legacy": lambda path: torch.save(
        {"state": Holder().state_dict(), "note": "kept"},
        path,
        _use_new_zipfile_serialization=False,
    ),
    "module": lambda path: torch.save({"state": Holder(), "note": "kept"}, path),
    "safetensors": lambda path: save_file(Holder().state_dict(), path, {"note": "kept"}),
}


@pytest.mark.process
@pytest.mark.parametrize("written", WRITERS)
def test_what_forms_ask_for_has_keys_and_metadata_and_no_value_of_a_tensor(
    ckptool, tmp_path, written
):
    path = tmp_path / "model"
    WRITERS[written](path)
    text = ckptool("inspect", "--format", "json", path).out
    assert '"weight"' in text
    assert "kept" in text
    assert "12345" not in text
    assert "1.2345" not in text


@pytest.mark.process
def test_scripts_of_workflows_are_bash(tool):
    for name, job, body in jobs():
        for step in body.get("steps", ()):
            if "run" in step:
                ran = tool("bash", "-n", "-c", step["run"])
                assert ran.code == 0, (name, job, ran.err)
