"""Six real training scripts: under `ckptool run` they do the same, and what they lose is said."""

import sys

import pytest
from tracing.conftest import SCRIPTS

pytestmark = pytest.mark.process


def words_for(name):
    if name == "ddp":
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        return (sys.executable, *launch, SCRIPTS / "ddp.py")
    return sys.executable, SCRIPTS / f"{name}.py"


EXPECTED = {
    "plain": ["CK330 mean", "CK331 steps", "CK332 StepLR"],
    "ddp": ["CK230 body.weight", "CK231 module.body.weight", "CK331 seen", "CK332 SGD"],
    "lit": ["CK233 queue", "CK330 queue"],
    "hf": ["CK230 classifier.bias"],
    "accel": ["CK233 scale", "CK330 scale", "CK332 Curriculum"],
    "ema": ["CK232 2.weight", "CK332 EMA", "CK332 GradScaler"],
}
PACKAGES = {"lit": "pytorch_lightning", "hf": "transformers", "accel": "accelerate"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_runs_the_same_and_its_losses_are_reported(name, project):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    plain, traced = project(*words_for(name))
    assert traced.report is not None, traced.err
    assert traced.code == plain.code == (3 if name == "ema" else 0), plain.err
    assert traced.out == plain.out
    assert traced.err == plain.err
    assert traced.files == plain.files
    assert traced.codes == EXPECTED[name]
    assert traced.report["skipped"] == []
    assert traced.report["command_exit_code"] == plain.code


def test_a_caught_error_is_told_from_one_that_ends_the_run(project, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from torch import nn\n"
        "torch.save(nn.Linear(2, 2).state_dict(), 'old.pt')\n"
        "nn.Linear(3, 2).load_state_dict(torch.load('old.pt'))\n"
    )
    plain, traced = project(sys.executable, script)
    assert traced.code == plain.code == 1
    # A wrapper in Python is a frame of the traceback: all other lines stay.
    assert traced.err.splitlines()[0] == plain.err.splitlines()[0]
    assert traced.err.splitlines()[-3:] == plain.err.splitlines()[-3:]
    (finding,) = traced.findings("CK232")
    assert "the process ended" in finding["message"]
    assert finding["where"].endswith("script.py:4")
