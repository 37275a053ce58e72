"""Files that torch.load, or the copy after it, refuses though their keys and shapes match."""

import zipfile

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

import ckptool
from ckptool.config import ReleaseRequirements
from ckptool.policy import Policy


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 2)


def load_with_torch(path):
    """Load as a user would who trusts the file; return what torch raises, None if it loads."""
    try:
        Net().load_state_dict(torch.load(path, weights_only=False))
    except Exception as error:  # noqa: BLE001 (torch raises what it likes)
        return error
    return None


def assert_judged_as_torch_does(path, policy=None, *, passes_if_loaded=True):
    """diff, gate and verify's first level say what torch.load and load_state_dict do.

    A file that loads may have an error all the same: `passes_if_loaded` is False then.
    """
    is_loaded = load_with_torch(path) is None
    passes = is_loaded and passes_if_loaded
    report = ckptool.diff(path, module=Net())
    assert report.verdict.startswith("loads") == is_loaded, report.verdict
    assert report.exit_code == (0 if passes else 1)
    assert report.is_coverage_known == is_loaded
    gate = ckptool.gate(path, module=Net(), values=False, policy=policy)
    assert (gate.exit_code == 0) == passes, gate.verdict
    level = next(v for v in ckptool.verify(path, module=Net()).levels if v.level == "load")
    assert (level.status == "passed") == is_loaded, level
    return report


# Archives that were unpacked and packed again


def repack(path, target, rename, *, extra=(), method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", method) as archive:
        for name in source.namelist():
            if new_name := rename(name):
                archive.writestr(new_name, source.read(name))
        for name in extra:
            archive.writestr(name, b"x" * (not name.endswith("/")))


ARCHIVES = {
    "as it was": (lambda name: name, ()),
    "its folder has another name": (lambda name: name.replace("model/", "weights/"), ()),
    "without the folder": (lambda name: name.partition("/")[2], ()),
    "a folder deeper": (lambda name: f"downloads/{name}", ()),
    "a file of macOS beside it": (lambda name: name, ("__MACOSX/._model",)),
    "a folder beside it": (lambda name: name, ("__MACOSX/",)),
    "a file of macOS in it": (lambda name: name, ("model/.DS_Store",)),
    "a folder's own entry": (lambda name: name, ("model/data/",)),
    "a file at the top": (lambda name: name, ("README",)),
    "a folder whose name begins alike": (lambda name: name, ("model2/x",)),
    "without a version": (lambda name: "" if name.endswith("/version") else name, ()),
    "a version of old": (lambda name: name.replace("model/version", "model/.data/version"), ()),
    "without a byte order": (lambda name: "" if name.endswith("byteorder") else name, ()),
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_was_packed_again(case, method, tmp_path):
    rename, extra = ARCHIVES[case]
    torch.save(Net().state_dict(), tmp_path / "model.pth")
    repack(tmp_path / "model.pth", tmp_path / "new.pth", rename, extra=extra, method=method)
    is_stored = method == zipfile.ZIP_STORED  # else torch's memory map reads noise
    report = assert_judged_as_torch_does(tmp_path / "new.pth", passes_if_loaded=is_stored)
    assert is_stored != ("CK322" in {finding.code for finding in report.findings})
    refusals = [f for f in report.findings if f.code == "CK313"]
    assert bool(refusals) == (load_with_torch(tmp_path / "new.pth") is not None)


@pytest.mark.parametrize("version", ["1", "2", "10", "11", "0"])
def test_a_version_of_the_archive_is_judged_as_torch_does(version, tmp_path):
    torch.save(Net().state_dict(), tmp_path / "model.pth")
    with (
        zipfile.ZipFile(tmp_path / "model.pth") as source,
        zipfile.ZipFile(tmp_path / "new.pth", "w") as archive,
    ):
        for name in source.namelist():
            is_version = name == "model/version"
            archive.writestr(name, version.encode() if is_version else source.read(name))
    assert_judged_as_torch_does(tmp_path / "new.pth")


def test_an_archive_that_torch_refuses_can_be_written_anew(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "model.pth")
    repack(tmp_path / "model.pth", tmp_path / "flat.pth", lambda name: name.partition("/")[2])
    ckptool.migrate(tmp_path / "flat.pth", tmp_path / "new.pth", module=Net())
    assert load_with_torch(tmp_path / "new.pth") is None
    assert ckptool.diff(tmp_path / "new.pth", module=Net()).verdict == "loads strictly"


# Shards and subclasses


@pytest.fixture
def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def save_rank(path, mesh, rank, placements):
    """Save what a rank has of Net's state, as torch.save(model.state_dict()) with FSDP2 does."""
    from torch.distributed.tensor import DTensor, Shard

    torch.manual_seed(0)
    is_sharded = isinstance(placements[0], Shard)
    state = {
        key: DTensor.from_local(
            tensor.chunk(2, 0)[rank].clone() if is_sharded else tensor, mesh, placements,
            run_check=False,
        )
        for key, tensor in Net().state_dict().items()
    }  # fmt: skip
    torch.save(state, path)


def test_a_ranks_file_of_dtensors(mesh, tmp_path):
    from torch.distributed.tensor import Shard

    save_rank(tmp_path / "rank0.pt", mesh, 0, [Shard(0)])
    report = assert_judged_as_torch_does(tmp_path / "rank0.pt")
    assert "got mixed torch.Tensor and DTensor" in report.verdict
    assert {f.key for f in report.findings if f.code == "CK604"} == {*Net().state_dict()}


def test_a_replicated_dtensor_is_no_shard_and_does_not_load_either(mesh, tmp_path):
    from torch.distributed.tensor import Replicate

    save_rank(tmp_path / "rank0.pt", mesh, 0, [Replicate()])
    report = assert_judged_as_torch_does(tmp_path / "rank0.pt")
    assert "CK604" not in {f.code for f in report.findings}


def test_two_ranks_are_two_states(mesh, tmp_path):
    from torch.distributed.tensor import Shard

    for rank in (0, 1):
        save_rank(tmp_path / f"rank{rank}.pt", mesh, rank, [Shard(0)])
    assert ckptool.diff(tmp_path / "rank0.pt", tmp_path / "rank1.pt").verdict == "values differ"
    same = ckptool.diff(tmp_path / "rank0.pt", tmp_path / "rank0.pt")
    assert (same.verdict, same.changes) == ("identical", ())


class Scaled(torch.Tensor):
    """A subclass that torch.load(weights_only=True) does not allow."""


def save_subclass(path, **options):
    state = {key: tensor.as_subclass(Scaled) for key, tensor in Net().state_dict().items()}
    torch.save(state, path, **options)


def test_a_subclass_that_torch_does_not_allow_is_not_checked(tmp_path):
    path = tmp_path / "model.pth"
    save_subclass(path)
    report = ckptool.diff(path, module=Net())
    assert report.verdict == "keys and shapes match; not checked: copying `a.weight`"
    assert not report.is_coverage_known
    assert "CK226" in {f.code for f in report.findings}
    report = ckptool.verify(path, module=Net())
    assert next(v for v in report.levels if v.level == "load").status == "inconclusive"
    assert report.exit_code == 2


def test_a_gate_never_passes_it_silently(tmp_path):
    path = tmp_path / "model.pth"
    save_subclass(path)
    gate = ckptool.gate(path, module=Net(), values=False)
    assert "CK226" in {f.code for f in gate.findings}
    strict = Policy(require=ReleaseRequirements(strict=True))
    gate = ckptool.gate(path, module=Net(), values=False, policy=strict)
    assert "CK851" in {f.code for f in gate.findings if f.fails}


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_subclass_that_is_allowed_is_copied(is_zip, tmp_path):
    path = tmp_path / "model.pth"
    save_subclass(path, _use_new_zipfile_serialization=is_zip)
    name = f"{Scaled.__module__}.{Scaled.__qualname__}"
    policy = Policy(require=ReleaseRequirements(globals=(name,)))
    with torch.serialization.safe_globals([Scaled]):
        report = assert_judged_as_torch_does(path, policy)
    assert report.verdict == "loads strictly"


class Holder(nn.Module):
    """Its buffer is a subclass that only takes its own kind."""

    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("held", tensor)


class Refuses(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_ and type(args[1]) is not cls:
            raise TypeError("only Refuses is copied into Refuses")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_subclass_of_the_module_is_asked(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"held": torch.ones(3)}, path)
    report = ckptool.diff(path, module=Holder(torch.ones(3).as_subclass(Refuses)))
    with pytest.raises(RuntimeError, match="only Refuses is copied"):
        Holder(torch.ones(3).as_subclass(Refuses)).load_state_dict(torch.load(path))
    assert report.verdict.startswith("does not load: While copying `held`")


# DeepSpeed


def test_placeholders_of_zero3_do_not_load(tmp_path):
    """Saved without gathering: each parameter is an empty tensor, buffers are whole."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({key: torch.empty(0, dtype=torch.float16) for key in Net().state_dict()}, path)
    assert load_with_torch(path) is not None
    report = ckptool.diff(path, module=Net())
    assert report.verdict == "does not load: 4 shape mismatches"
    assert report.coverage == 0
    assert ckptool.gate(path, module=Net(), values=False).exit_code == 1
    level = next(v for v in ckptool.verify(path, module=Net()).levels if v.level == "load")
    assert level.status == "failed"


# States in a state


@pytest.mark.parametrize(
    "beside",
    [{"w": torch.ones(1)}, [torch.ones(1)], {"a": {"w": torch.ones(1)}}, {"a": 1}, 1, None],
    ids=["a state", "a list", "a nested state", "plain values", "a number", "None"],
)
@pytest.mark.parametrize("key", ["ema", "a.ema", "b"])
def test_what_stands_beside_the_tensors_is_unexpected(key, beside, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({**Net().state_dict(), key: beside}, path)
    report = ckptool.diff(path, module=Net())
    assert load_with_torch(path) is not None
    assert report.verdict == "does not load: 1 unexpected"
    assert report.unexpected_keys[0].startswith(key)
    assert ckptool.gate(path, module=Net(), values=False).exit_code == 1
    level = next(v for v in ckptool.verify(path, module=Net()).levels if v.level == "load")
    assert level.status == "failed"
