"""A tie in safetensors: one name in the file, which its own loader and the module tie again."""

import json
import shutil

import pytest
import torch
from migration import models
from safetensors.torch import load_model, save_file, save_model
from torch import nn

from ckptool import api

POLICY = """
[[models]]
path = "*"
module = "net:New"
inputs = ["int64[2,3]<5"]
[require]
verify = ["load", "forward"]
device = "cpu"
"""


@pytest.fixture
def tied(release):
    shutil.copy(models.__file__, release.folder / "net.py")
    save_model(models.New(), release.folder / "tied.safetensors", {"format": "pt"})
    release.policy(POLICY)
    return release


def test_a_tied_safetensors_is_no_failure(tied):
    assert load_model(models.New(), tied.folder / "tied.safetensors") == (set(), [])
    ran = tied.gate("tied.safetensors", "--format", "json")
    report = json.loads(ran.out)
    assert ran.code == 0
    assert [(f["code"], f["level"]) for f in report["findings"] if f["code"] == "CK501"] == [
        ("CK501", "note")
    ]


def test_diff_and_verify_agree_with_the_gate(tied):
    for command in ("diff", "verify"):
        ran = tied.command(command, "tied.safetensors", cwd=tied.folder)
        assert ran.code == 0
    assert "tied again, because safetensors stores one name: " in ran.out
    ran = tied.command("diff", "tied.safetensors", "-q", cwd=tied.folder)
    assert ran.out.startswith("loads with safetensors.torch.load_model, which ties `")


def test_a_name_that_a_pth_lacks_still_fails(tied):
    state = models.New().state_dict()
    del state["head.weight"]
    torch.save(state, tied.folder / "lacks.pth")
    assert tied.gate("lacks.pth").code == 1


RECORDS_NOT_TO_TRUST = {
    "nested 100,000 deep": "[" * 100_000,
    "objects nested 100,000 deep": '{"a":' * 100_000,
    "no JSON": "embed.weight",
    "truncated": '{"head.weight": "weigh',
    "text after it": '{"head.weight": "weight"} {}',
    "a list": '[["head.weight", "weight"]]',
    "values that are no names": '{"a": 1, "b": null, "c": ["weight"], "d": {"weight": "w"}}',
    "a name twice": '{"head.weight": "weight", "head.weight": "weight"}',
    "half of a surrogate pair": '{"\\ud800": "weight"}',
    "keys that are absent": '{"head.weight": "embed.weight", "weight": "gone", "": ""}',
    "a number of 5,000 digits": '{"head.weight": ' + "1" * 5_000 + "}",
}


def keys_after_migrate(path, module):
    target = path.with_suffix(".pth")
    api.migrate(path, target, module=module, force=True)
    return list(torch.load(target))


COMMANDS = {
    "diff": lambda path, module: said(api.diff(path, module=module)),
    "digest": lambda path, _: api.digest(path).checkpoints[0].digest,
    "inspect": lambda path, _: api.inspect(path).checkpoints[0].states,
    "verify": lambda path, module: said(api.verify(path, module=module, device="cpu")),
    "gate": lambda path, module: said(api.gate(path, module=module)),
    "migrate": keys_after_migrate,
}


def said(report):
    return report.verdict, report.findings


DEEP, *OTHERS = RECORDS_NOT_TO_TRUST


@pytest.mark.parametrize(
    ("command", "record"),
    [(command, DEEP) for command in COMMANDS]
    # Only these read the record.
    + [(command, record) for record in OTHERS for command in ("migrate", "diff")],
)
def test_a_record_of_ties_that_cannot_be_trusted_is_ignored(tmp_path, command, record):
    """A record of 100,000 brackets ended `migrate` with a RecursionError."""
    module = nn.Linear(2, 3)
    path = tmp_path / "m.safetensors"
    save_file(module.state_dict(), path, {"format": "pt"})
    plain = COMMANDS[command](path, module)
    metadata = {"format": "pt", "ckptool.ties": RECORDS_NOT_TO_TRUST[record]}
    save_file(module.state_dict(), path, metadata)
    assert COMMANDS[command](path, module) == plain
