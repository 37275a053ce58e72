"""Dtypes that came after the typed storages: only a zip archive can be loaded with them."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

import ckptool

LATE = ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64", "complex32"]
EARLY = ["float16", "bfloat16", "complex64", "bool", "int16"]


class Net(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("table", torch.ones(3).to(dtype))


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_pickle(state, path):
    with path.open("wb") as file:
        pickle.dump(state, file)


def read_again(path):
    """Load as the library that wrote it would; return what it raises, or None."""
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                pickle.load(file)
        else:
            torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (torch raises what it likes)
        return error
    return None


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", LATE + EARLY)
@pytest.mark.parametrize("is_pickle", [False, True])
def test_a_late_dtype_before_the_zip_is_refused_as_torch_refuses_it(name, is_pickle, tmp_path):
    module, new = Net(getattr(torch, name)), tmp_path / "new.pth"
    path = tmp_path / ("old.pkl" if is_pickle else "old.pth")
    (save_pickle if is_pickle else save_legacy)(module.state_dict(), path)
    is_refused = read_again(path) is not None
    assert is_refused == (name in LATE)
    report = ckptool.diff(path, module=module)
    refusals = [f.message for f in report.findings if f.code == "CK313"]
    if is_pickle:  # torch.load opens no pickle.dump; whether pickle.load does is said
        assert (f"cannot be loaded again with {name} tensors" in refusals[0]) == is_refused
    else:
        assert (report.verdict == "loads strictly") != is_refused
        assert bool(refusals) == is_refused
        assert ckptool.gate(path, module=module, values=False).exit_code == is_refused
    ckptool.convert(path, new)  # a zip: the values are in the file, and torch loads them there
    written = torch.load(new, weights_only=True)
    assert torch.equal(
        written["table"].view(torch.uint8), module.state_dict()["table"].view(torch.uint8)
    )


def test_a_storage_without_a_dtype_is_refused_too(tmp_path):
    path = tmp_path / "storage.pth"
    save_legacy(
        {"state": Net(torch.int8).state_dict(), "raw": torch.ones(3).untyped_storage()}, path
    )
    assert isinstance(read_again(path), AttributeError)
    assert "CK313" in {f.code for f in ckptool.inspect(path).findings}


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", LATE + EARLY)
def test_a_big_endian_archive_has_the_values_that_torch_loads(name, tmp_path):
    """Torch swaps the bytes of typed storages, and leaves those of the late dtypes as they are."""
    dtype = getattr(torch, name)
    values = torch.arange(1, 5).to(torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    little, big = tmp_path / "little.pt", tmp_path / "big.pt"
    torch.save({"x": values}, little)
    with zipfile.ZipFile(little) as source, zipfile.ZipFile(big, "w") as target:
        for record in source.namelist():
            is_order = record.endswith("/byteorder")
            target.writestr(record, b"big" if is_order else source.read(record))
    loaded = [torch.load(path, weights_only=True)["x"] for path in (little, big)]
    same = bytes(loaded[0].untyped_storage()) == bytes(loaded[1].untyped_storage())
    digests = [ckptool.digest(path).checkpoints[0].digest for path in (little, big)]
    assert (digests[0] == digests[1]) == same
    torch.save({"x": loaded[1]}, tmp_path / "loaded.pt")
    assert ckptool.digest(tmp_path / "loaded.pt").checkpoints[0].digest == digests[1]
