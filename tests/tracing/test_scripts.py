"""Real training scripts: under `ckptool run` they do the same, and what they lose is said."""

import sys

import pytest
import torch
from tracing.conftest import SCRIPTS, run_words

pytestmark = pytest.mark.process


def words_for(name):
    if name in {"ddp", "fsdp", "fsdp1"}:
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        return (sys.executable, *launch, SCRIPTS / f"{name}.py")
    return sys.executable, SCRIPTS / f"{name}.py"


EXPECTED = {
    "plain": ["CK330 mean", "CK331 steps", "CK332 StepLR"],
    "ddp": ["CK230 body.weight", "CK331 seen", "CK332 SGD"],
    "lit": ["CK233 queue", "CK330 queue"],
    "hf": ["CK230 classifier.bias"],
    "accel": ["CK233 scale", "CK330 scale", "CK332 Curriculum"],
    "ema": ["CK232 2.weight", "CK332 EMA", "CK332 GradScaler"],
    # A sharded checkpoint, and one file: both ranks load the sharded one.
    "fsdp": ["CK233 scale", *["CK330 scale"] * 2, *["CK331 seen"] * 2],
    "fsdp1": ["CK331 _fsdp_wrapped_module.seen", "CK332 SGD"],
    "constructors": ["CK330 child.mask", "CK330 mask", "CK330 scale", "CK330 scale"],
    "compiled": [
        *("CK230 body.weight", "CK233 scale", "CK233 scale"),
        *("CK330 _orig_mod.scale", "CK331 _orig_mod.steps"),
    ],
    "accumulate": [],
    "swa": ["CK332 AveragedModel"],
    "gan": ["CK332 Adam"],
    "dqn": [
        *("CK330 replay.rewards", "CK330 replay.states"),
        *("CK331 epsilon", "CK331 replay.full", "CK331 replay.position"),
    ],
    "stateful": [],
    "lr_finder": [],
    "moco": ["CK233 queue", "CK330 queue"],
    "distill": ["CK230 0.base.weight"] * 3 + ["CK332 Adam", "CK333 0.base.weight"],
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
    assert traced.files.keys() == plain.files.keys()
    # The metadata of a distributed checkpoint have a random number of their own.
    assert all(traced.files[f] == plain.files[f] for f in plain.files if "/.metadata" not in f)
    assert traced.codes == EXPECTED[name]
    assert traced.report["skipped"] == []
    assert traced.report["command_exit_code"] == plain.code


@pytest.mark.parametrize(
    ("name", "options", "file"),
    [("accumulate", ("--resume", "ckpt.pt"), "final.pt"), ("stateful", ("--resume",), "end.pt")],
)
def test_a_script_of_which_nothing_is_said_resumes_exactly(name, options, file, tmp_path):
    """The finding that is not there: a second process goes on to the same weights, bit for bit."""
    first = run_words(words_for(name), tmp_path)
    resumed = run_words((*words_for(name), *options), tmp_path)
    assert (first.code, resumed.code) == (0, 0), resumed.err
    assert resumed.files[file] == first.files[file]
    assert resumed.out.splitlines()[-1] == first.out.splitlines()[-1]


def test_the_files_lack_what_is_named(tmp_path):
    """What torch has of the states that the findings of these scripts name."""
    for name in ("gan", "dqn", "moco", "swa"):
        assert run_words(words_for(name), tmp_path).code == 0
    gan, agent = torch.load(tmp_path / "gan.pt"), torch.load(tmp_path / "agent.pt")["agent"]
    assert "opt_d" not in gan
    assert not [key for key in agent if "replay" in key or "epsilon" in key]
    assert "queue" not in torch.load(tmp_path / "moco.pt")["model"]
    assert torch.load(tmp_path / "last.pt").keys() & {"ema", "swa"} == {"swa"}


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


def test_state_of_many_kinds_and_modules_that_no_file_has(project, tmp_path):
    """A list, an array, a dict, flags; a copy that averages and a discriminator in no file."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import copy

import numpy as np
import torch
from torch import nn


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.history = []
        self.array = np.zeros(3)
        self.tables = {"k": torch.zeros(2)}
        self.temperature = 1.0
        self.ready = False
        self.constant = torch.ones(2)
        self.cache = None


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)


generator, discriminator = Generator(), Discriminator()
average = copy.deepcopy(generator)
optimizers = [torch.optim.Adam(m.parameters()) for m in (generator, discriminator)]
for _ in range(2):
    discriminator.linear(generator.linear(torch.randn(4, 2))).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        for mean, parameter in zip(average.parameters(), generator.parameters()):
            mean.mul_(0.9).add_(parameter, alpha=0.1)
    generator.history.append(torch.tensor(1.0))
    generator.array += 1
    generator.tables["k"] += 1
    generator.temperature /= 2
    generator.ready = True
    generator.cache = 3
best = copy.deepcopy(generator.state_dict())
content = {"model": best, "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
torch.save(content, "best.pt")
"""
    )
    plain, traced = project(sys.executable, script)
    assert (traced.code, traced.err) == (plain.code, plain.err) == (0, "")
    assert traced.codes == [
        *("CK330 array", "CK330 history[0]", "CK330 history[1]", "CK330 tables['k']"),
        *("CK331 ready", "CK331 temperature", "CK332 Discriminator", "CK332 Generator"),
    ]
