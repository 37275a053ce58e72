"""JSON reports: every one as the schema says, with the fields that scripts rely on."""

import json

import jsonschema
import pytest
from command_runs import WITH_BUFFER
from paths import ROOT

SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())
COMMON = {"schema", "command", "findings", "skipped", "exit_code"}


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (("inspect", "samples/whole.pth", "samples/buffer.safetensors"), {"checkpoints"}),
        (
            ("diff", "samples/model.pth"),
            {
                "matched",
                "missing_keys",
                "unexpected_keys",
                "mismatched_keys",
                "unsaved",
                "coverage",
            },
        ),
        (("diff", "samples/model.pth", *WITH_BUFFER), {"verdict", "verdicts"}),
        (
            ("diff", "samples/model.pth", "samples/buffer.pth"),
            {"added_keys", "removed_keys", "changed_keys", "verdict"},
        ),
        (("digest", "samples/model.pth"), {"format", "checkpoints", "check"}),
        (("audit", *WITH_BUFFER), {"unsaved", "parameters", "persistent_buffers"}),
    ],
)
def test_reports_are_as_the_schema_says(run_command, words, fields):
    ran = run_command(*words, "--format", "json")
    report = json.loads(ran.out)
    assert report.keys() >= COMMON | fields
    assert report["schema"] == 1
    assert report["command"] == words[0]
    assert report["exit_code"] == ran.code
    for finding in report["findings"]:
        assert finding.keys() >= {"code", "level", "key", "message", "facts"}
    jsonschema.Draft202012Validator(SCHEMA).validate(report)


def test_unsaved_state_has_all_its_facts(run_command):
    report = json.loads(run_command("diff", "samples/model.pth", "--format", "json").out)
    (mask,) = report["unsaved"]
    assert mask == {
        "key": "mask",
        "kind": "attribute",
        "owner": "samples.attention.CausalAttentionWithoutBuffers",
        "shape": [6, 6],
        "dtype": "float32",
        "nbytes": 144,
        "constancy": "constant",
        "follows_to": False,
        "where": mask["where"],
        "used": mask["used"],
        "in_file": False,
    }


def test_inspect_lists_every_tensor_of_every_state(run_command):
    report = json.loads(run_command("inspect", "samples/training.pth", "--format", "json").out)
    (checkpoint,) = report["checkpoints"]
    assert checkpoint["container"] == "torch-zip"
    assert checkpoint["path"] == "samples/training.pth"
    assert "collections.OrderedDict" in checkpoint["globals"]
    places = {state["at"]: [t["key"] for t in state["tensors"]] for state in checkpoint["states"]}
    assert places["model"] == ["mask", "W_query.weight", "W_key.weight", "W_value.weight"]
    assert "state.0.exp_avg" in places["optimizer"]
    (model,) = [state for state in checkpoint["states"] if state["at"] == "model"]
    assert {k: model["tensors"][0][k] for k in ("key", "shape", "dtype", "nbytes", "device")} == {
        "key": "mask",
        "shape": [6, 6],
        "dtype": "float32",
        "nbytes": 144,
        "device": "cpu",
    }


def test_the_library_offers_what_the_commands_do():
    """A package must not hide a function of its name: ckptool.verify stays callable."""
    import ckptool
    import ckptool.migration
    import ckptool.verification

    for name in ("audit", "diff", "digest", "inspect", "migrate", "rule", "verify"):
        assert callable(getattr(ckptool, name))
