"""Files and modules with a DTensor or a ShardedTensor, of one process: what torch says of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ckptool import diff, digest

pytestmark = pytest.mark.process

START = """
import json, sys, warnings
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

warnings.simplefilter("ignore")
folder = sys.argv[1]


def start(world_size):
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
"""
DTENSORS = """
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

start(2)
content = {"a": (0.0, [0, 1]), "same": (0.0, [0, 1])}
content |= {"ranks": (0.0, [1, 0]), "values": (1.0, [0, 1])}
loaded = {}
for name, (value, ranks) in content.items():
    local = torch.arange(4.0) + value
    tensor = DTensor.from_local(local, DeviceMesh("cpu", ranks), [Replicate()], run_check=False)
    torch.save({"w": tensor}, f"{folder}/{name}.pt")
    w = torch.load(f"{folder}/{name}.pt", weights_only=False)["w"]
    loaded[name] = (w.to_local().tolist(), w.device_mesh.mesh.tolist())
print(json.dumps(loaded))
"""
SHARDED_MODULE = """
import torch
import torch.distributed as dist
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.testing._internal.distributed.fake_pg import FakeStore


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        if not dist.is_initialized():
            dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
        spec = ChunkShardingSpec(dim=0, placements=["rank:0/cpu"])
        self.w = sharded_tensor.ones(spec, 4, 3)
        self.fc = torch.nn.Linear(2, 2)
        self._register_state_dict_hook(sharded_tensor.state_dict_hook)
"""
SHARDED = """
sys.path.insert(0, folder)
from sharded_net import Net

loaded = {}
for name, step in {"a": 0.0, "same": 0.0, "values": 1.0}.items():
    torch.manual_seed(0)
    module = Net()
    module.w.local_shards()[0].tensor.add_(step)
    torch.save(module.state_dict(), f"{folder}/{name}.pt")
    w = torch.load(f"{folder}/{name}.pt", weights_only=False)["w"]
    loaded[name] = w.local_shards()[0].tensor.tolist()
print(json.dumps(loaded))
"""


def write_files(code: str, folder: Path) -> dict[str, object]:
    """Run `code`, which saves files, and return what torch loads from each."""
    command = [sys.executable, "-c", START + code, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def check_verdicts(loaded: dict[str, object], folder: Path) -> None:
    """Check that two files are identical exactly if torch loads the same from both."""
    for name, content in loaded.items():
        report = diff(folder / "a.pt", folder / f"{name}.pt")
        assert (report.verdict == "identical") is (content == loaded["a"]), name
        assert all(skipped.what == "statistics of w" for skipped in report.skipped)
    values = diff(folder / "a.pt", folder / "values.pt")
    assert (values.verdict, values.value_keys) == ("values differ", ("w",))


def test_a_dtensor_is_compared_with_the_ranks_of_its_mesh(tmp_path: Path) -> None:
    loaded = write_files(DTENSORS, tmp_path)
    assert loaded["a"][1] != loaded["ranks"][1]
    check_verdicts(loaded, tmp_path)
    report = diff(tmp_path / "a.pt", tmp_path / "ranks.pt")
    assert any("mesh" in place for place in report.changed_entries)


def test_a_sharded_tensor_is_compared_by_its_shards(tmp_path: Path) -> None:
    (tmp_path / "sharded_net.py").write_text(SHARDED_MODULE)
    check_verdicts(write_files(SHARDED, tmp_path), tmp_path)
    digests = digest([tmp_path / f"{name}.pt" for name in ("a", "same", "values")])
    first, same, other = (checkpoint.digest for checkpoint in digests.checkpoints)
    assert first == same != other


LOADS = """
sys.path.insert(0, folder)
from sharded_net import Net

state = Net().state_dict()
torch.save(state, f"{folder}/a.pt")
try:
    Net().load_state_dict(state)
    print(json.dumps(""))
except RuntimeError as error:
    print(json.dumps(str(error)))
"""


def test_a_module_with_a_sharded_tensor_is_examined(tmp_path: Path, ckptool) -> None:
    """Its class raises for nearly every property that torch.Tensor has."""
    path = tmp_path / "sharded_net.py"
    path.write_text(SHARDED_MODULE)
    error = write_files(LOADS, tmp_path)
    report = json.loads(ckptool("audit", "-m", f"{path}:Net", "--format", "json").out)
    (buffer,) = report["persistent_buffers"]
    assert (buffer["key"], buffer["shape"]) == ("w", [4, 3])
    (finding,) = report["findings"]
    assert finding["code"] == "CK114"
    assert finding["facts"]["error"] in error
    result = ckptool("diff", str(tmp_path / "a.pt"), "-m", f"{path}:Net")
    assert "3 match" in result.out
