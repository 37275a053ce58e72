"""Entries that are no plain dense tensors: each command says what torch does, or refuses in a line.

The truth is what torch.load and load_state_dict do with the same file and module.
"""

import collections

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hostile import odd_entries
from hostile.odd_entries import ENTRIES, SUBCLASSES, Holder, Lazy, Net
from safetensors.torch import load_file
from torch.testing._internal.distributed.fake_pg import FakeStore

import ckptool
from ckptool.errors import CkptoolError
from ckptool.modules.tensors.tensor_parts import find_memory_address, list_memory_tensors
from ckptool.verification.levels import load, round_trip
from ckptool.verification.loading.load_tensors import set_versions

pytestmark = pytest.mark.filterwarnings("ignore")
INPUTS = (torch.ones(2),)


@pytest.fixture(autouse=True)
def allowed_subclasses():
    with torch.serialization.safe_globals([*SUBCLASSES]):
        yield


def loads_with_torch(path, module, at=None, *, weights_only=True):
    """Whether torch loads the file strictly into the module."""
    try:
        state = torch.load(path, weights_only=weights_only, map_location="cpu")
        module.load_state_dict(state if at is None else state[at])
    except Exception:  # noqa: BLE001 (torch and subclasses raise what they like)
        return False
    return True


def save_entry(path, name):
    """Save a Holder's state; return False where torch cannot save such a tensor."""
    try:
        torch.save({"weight": torch.ones(2), "held": ENTRIES[name]()}, path)
    except Exception:  # noqa: BLE001
        return False
    return True


def get_statuses(report):
    return {level.level: level.status for level in report.levels}


def run_or_refuse(function):
    """Return the report, None if ckptool refused; any other exception fails the test."""
    try:
        return function()
    except CkptoolError:
        return None


# A module's tensors on meta stand for such with values.
PAIRS = [(name, name) for name in ENTRIES if name != "meta"]
PAIRS += [(name, "plain") for name in ENTRIES if name != "plain"]
PAIRS += [("plain", name) for name in ENTRIES if name != "plain"]


@pytest.mark.parametrize(("saved", "held"), PAIRS, ids=map(" into ".join, PAIRS))
def test_verify_and_diff_say_what_torch_does(saved, held, tmp_path):
    path = tmp_path / "model.pth"
    if not save_entry(path, saved):
        pytest.skip(f"torch cannot save {saved}")
    is_loaded = loads_with_torch(path, Holder(held))
    target, kwargs = "hostile.odd_entries:Holder", {"entry": held}
    report = run_or_refuse(
        lambda: ckptool.verify(path, module=target, kwargs=kwargs, inputs=INPUTS)
    )
    if report is not None:
        status = get_statuses(report)["load"]
        assert status != ("failed" if is_loaded else "passed"), report.verdict
        assert status == "passed" or report.exit_code in {1, 2}
    diff = run_or_refuse(lambda: ckptool.diff(path, module=target, kwargs=kwargs))
    if diff is not None:
        wrong = "does not load" if is_loaded else "loads strictly"
        assert not diff.verdict.startswith(wrong), diff.verdict


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_migration_is_refused_or_what_torch_read(name, suffix, tmp_path):
    path, target = tmp_path / "model.pth", tmp_path / f"new.{suffix}"
    if not save_entry(path, name):
        pytest.skip(f"torch cannot save {name}")
    if run_or_refuse(lambda: ckptool.migrate(path, target, module=None)) is None:
        assert not target.exists()
        return
    old = torch.load(path, weights_only=False)["held"]
    new = ckptool.inspect(target).checkpoints[0].states[0]
    assert "held" in {tensor.key for tensor in new.tensors}
    if suffix == "pth":
        held = torch.load(target, weights_only=False)["held"]
        assert (type(held), held.layout, held.dtype) == (type(old), old.layout, old.dtype)


def test_persistence_tries_what_a_wrapper_wraps(tmp_path):
    path = tmp_path / "model.pth"
    save_entry(path, "pair")
    kwargs = {"entry": "pair"}
    report = ckptool.verify(path, module="hostile.odd_entries:Holder", kwargs=kwargs, inputs=INPUTS)
    level = next(level for level in report.levels if level.level == "persistence")
    assert (level.status, level.details) == ("passed", ())
    holder = Holder("pair")
    before = holder.held.first.clone(), holder.held.second.clone()
    with torch.no_grad():
        assert round_trip._change_state(holder) == ()
    assert not torch.equal(holder.held.first, before[0])
    assert not torch.equal(holder.held.second, before[1])


@pytest.mark.parametrize("name", ["closed wrapper", "nested", "qint8", "meta"])
def test_persistence_says_what_it_could_not_change(name):
    holder = Holder(name)
    with torch.no_grad():
        assert round_trip._change_state(holder) == ("held",)


def test_a_wrapper_has_no_memory_of_its_own():
    assert find_memory_address(ENTRIES["pair"]()) is None
    assert find_memory_address(ENTRIES["meta"]()) is None
    assert find_memory_address(ENTRIES["sparse_coo"]()) is None
    assert find_memory_address(ENTRIES["plain"]()) is not None
    assert len(list_memory_tensors(ENTRIES["pair of pairs"]())) == 4
    assert list_memory_tensors(ENTRIES["refusing wrapper"]()) == []


def test_a_load_by_assignment_leaves_the_next_one_a_copy(tmp_path):
    """load_state_dict(assign=True) writes into `_metadata`, whose mappings a state shares."""
    state = Net().state_dict()
    Net().load_state_dict(load._copy_metadata(state, dict(state)), assign=True)
    module = Net()
    module.load_state_dict(state)
    assert module.linear.weight.data_ptr() != state["linear.weight"].data_ptr()
    versions, copy = state._metadata, collections.OrderedDict()
    set_versions(copy, versions)
    assert copy._metadata == versions
    torch.save({"weight": torch.ones(2), "held": ENTRIES["marked"]()}, tmp_path / "a.pth")
    report = ckptool.verify(tmp_path / "a.pth", module="hostile.odd_entries:Holder", inputs=INPUTS)
    assert get_statuses(report)["persistence"] == "passed"


# Lazy modules


@pytest.mark.parametrize(("saved", "built"), [(Lazy, Lazy), (Lazy, Net), (Net, Lazy)])
def test_lazy_parameters(saved, built, tmp_path):
    torch.save(saved().state_dict(), tmp_path / "model.pth")
    is_loaded = loads_with_torch(tmp_path / "model.pth", built(), weights_only=False)
    target = f"hostile.odd_entries:{built.__name__}"
    x = (torch.ones(2, 4),)
    report = run_or_refuse(lambda: ckptool.verify(tmp_path / "model.pth", module=target, inputs=x))
    assert report is None or (get_statuses(report)["load"] == "passed") == is_loaded
    assert run_or_refuse(lambda: ckptool.gate([tmp_path / "model.pth"], module=target))
    run_or_refuse(
        lambda: ckptool.migrate(tmp_path / "model.pth", tmp_path / "new.safetensors", module=target)
    )


# XLA and other devices: the elements are a NumPy array in the pickle


class OnDevice:
    """Is pickled as torch pickles a tensor of a device that it does not know."""

    def __init__(self, tensor, device):
        self.tensor, self.device = tensor, device

    def __reduce__(self):
        array, dtype = self.tensor.detach().numpy(), self.tensor.dtype
        return torch._utils._rebuild_device_tensor_from_numpy, (array, dtype, self.device, False)


@pytest.fixture
def xla_path(tmp_path):
    torch.manual_seed(0)
    state = collections.OrderedDict(
        (key, OnDevice(tensor, "xla:1")) for key, tensor in Net().state_dict().items()
    )
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "xla.pt")
    return tmp_path / "xla.pt"


def test_an_xla_file_is_verified_as_torch_loads_it(xla_path):
    assert loads_with_torch(xla_path, Net(), "state_dict", weights_only=False)
    report = ckptool.verify(xla_path, module="hostile.odd_entries:Net", inputs=(torch.ones(2, 4),))
    assert get_statuses(report)["load"] == "passed"
    assert report.exit_code == 0
    assert ckptool.diff(xla_path, xla_path).verdict.startswith("identical")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_xla_file_is_migrated_whole(suffix, xla_path, tmp_path):
    target = tmp_path / f"new.{suffix}"
    report = ckptool.migrate(
        xla_path, target, module="hostile.odd_entries:Net", drop_extra=suffix != "pth"
    )
    assert report.exit_code == 0
    old = torch.load(xla_path, weights_only=False, map_location="cpu")["state_dict"]
    if suffix == "pth":
        new = torch.load(target, weights_only=False, map_location="cpu")["state_dict"]
    else:
        new = load_file(target)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_an_array_without_its_elements_is_refused(tmp_path):
    array = np.ones(4, dtype=np.float32)

    class Short:
        def __reduce__(self):
            build, arguments, state = array.__reduce__()
            return build, arguments, (*state[:4], state[4][:-4])

    class Entry:
        def __reduce__(self):
            arguments = (Short(), torch.float32, "xla:1", False)
            return torch._utils._rebuild_device_tensor_from_numpy, arguments

    torch.save({"w": Entry()}, tmp_path / "short.pt")
    with pytest.raises(Exception, match=r"state|buffer|size"):
        torch.load(tmp_path / "short.pt", weights_only=False, map_location="cpu")
    with pytest.raises(CkptoolError, match="an array without its elements"):
        ckptool.migrate(tmp_path / "short.pt", tmp_path / "new.pth")


# Shards of ranks


@pytest.fixture
def process_group():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("placements", ["SR", "RS", "RR", "SS", "RP"])
def test_dtensors_of_two_mesh_dimensions(placements, process_group, tmp_path, run_command):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = init_device_mesh("cpu", (2, 2))
    kinds = {"S": Shard(0), "R": Replicate(), "P": Partial()}
    state = {
        key: DTensor.from_local(
            tensor.clone(), mesh, [kinds[one] for one in placements], run_check=False
        )
        for key, tensor in Net().state_dict().items()
        if tensor.ndim
    }
    state["norm.num_batches_tracked"] = torch.tensor(0)
    torch.save(state, tmp_path / "rank0.pt")
    assert not loads_with_torch(tmp_path / "rank0.pt", Net())
    for command in ("verify", "gate", "diff"):
        ran = run_command(command, str(tmp_path / "rank0.pt"), "-m", "hostile.odd_entries:Net")
        assert ran.code == 1, ran.out
    ran = run_command(
        "migrate", str(tmp_path / "rank0.pt"), "-m", "hostile.odd_entries:Net",
        "-o", str(tmp_path / "new.pth"),
    )  # fmt: skip
    assert ran.code == 2
    assert not (tmp_path / "new.pth").exists()


def test_a_sharded_tensor_is_not_verified(process_group, tmp_path):
    from torch.distributed._shard import sharded_tensor
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec

    spec = ChunkShardingSpec(dim=0, placements=[f"rank:{rank}/cpu" for rank in range(4)])
    state = {
        key: sharded_tensor.empty(spec, *tensor.shape)
        for key, tensor in Net().state_dict().items()
        if tensor.ndim
    }
    state["norm.num_batches_tracked"] = torch.tensor(0)
    torch.save(state, tmp_path / "rank0.pt")
    report = ckptool.verify(tmp_path / "rank0.pt", module="hostile.odd_entries:Net")
    assert report.exit_code in {1, 2}
    assert get_statuses(report)["load"] in {"failed", "inconclusive"}
    gate = ckptool.gate([tmp_path / "rank0.pt"], module="hostile.odd_entries:Net")
    assert gate.exit_code == 1


# What is no tensor


@pytest.mark.parametrize(
    "value",
    [2.5, [1.0, 2.0], None, "x", b"x", {1: 2}, torch.float32, torch.Size([2]), {1}, 1 + 2j],
    ids=repr,
)
def test_a_value_that_is_no_tensor_fails_as_torch_does(value, tmp_path):
    torch.save({"weight": value, "held": torch.ones(4)}, tmp_path / "model.pth")
    assert not loads_with_torch(tmp_path / "model.pth", Holder())
    target = "hostile.odd_entries:Holder"
    report = run_or_refuse(lambda: ckptool.verify(tmp_path / "model.pth", module=target))
    assert report is None or report.exit_code in {1, 2}
    assert ckptool.gate([tmp_path / "model.pth"], module=target).exit_code in {1, 2}


def test_arrays_beside_tensors(tmp_path):
    torch.save({"weight": np.ones(2), "held": torch.ones(4)}, tmp_path / "model.pth")
    assert not loads_with_torch(tmp_path / "model.pth", Holder())
    report = run_or_refuse(
        lambda: ckptool.verify(tmp_path / "model.pth", module="hostile.odd_entries:Holder")
    )
    assert report is None or report.exit_code in {1, 2}


def test_every_kind_of_entry_is_made():
    assert {type(make()) for make in ENTRIES.values()} >= {*odd_entries.SUBCLASSES}
