"""Arrays of joblib.dump, whose bytes stand in the stream: read, and never read in two ways."""

import pickle
import sys
import types

import numpy as np
import pytest
import torch

import ckptool
from ckptool.errors import ReadError
from ckptool.formats import open_checkpoint


@pytest.fixture
def wrapper(monkeypatch):
    """Return the class that joblib pickles before an array, in a module of joblib's name."""
    module = types.ModuleType("joblib.numpy_pickle")
    cls = type("NumpyArrayWrapper", (), {"__module__": "joblib.numpy_pickle"})
    module.NumpyArrayWrapper = cls
    monkeypatch.setitem(sys.modules, "joblib", types.ModuleType("joblib"))
    monkeypatch.setitem(sys.modules, "joblib.numpy_pickle", module)
    return cls


def write(path, wrapper, array, padding=3, protocol=3, **fields):
    """Write {"w": array} as joblib does: the wrapper, the padding's length, padding, bytes."""
    described = wrapper()
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    described.__dict__.update(
        subclass=np.ndarray, shape=array.shape, order=order, dtype=array.dtype, allow_mmap=True,
        numpy_array_alignment_bytes=16,
    )  # fmt: skip
    described.__dict__.update(fields)
    data = pickle.dumps({"w": described}, protocol=protocol)
    assert data.endswith(b"bs.")
    raw = array.tobytes(order="A")
    path.write_bytes(data[:-2] + bytes([padding]) + b"\xff" * (padding % 16) + raw + data[-2:])
    return path


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4, dtype=">i4"),
    np.zeros((0, 2)),
    np.array([True, False]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_an_array_in_the_stream_becomes_a_tensor(tmp_path, wrapper, array):
    source = write(tmp_path / "a.joblib", wrapper, array)
    ckptool.convert(source, tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)["w"]
    assert torch.equal(found, torch.from_numpy(array.astype(array.dtype.newbyteorder("=")).copy()))


def test_joblib_itself(tmp_path):
    joblib = pytest.importorskip("joblib")
    content = {"w": ARRAYS[0], "f": ARRAYS[1], "n": {"b": ARRAYS[4]}, "epoch": 3}
    joblib.dump(content, tmp_path / "a.joblib")
    ckptool.convert(tmp_path / "a.joblib", tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(found["w"], torch.from_numpy(ARRAYS[0]))
    assert torch.equal(found["f"], torch.from_numpy(ARRAYS[1]))
    assert torch.equal(found["n"]["b"], torch.from_numpy(ARRAYS[4]))
    assert found["epoch"] == 3


@pytest.mark.parametrize(
    "how",
    [
        {"padding": 0x28},
        {"padding": ord("c")},
        {"numpy_array_alignment_bytes": None},
        {"shape": "x"},
        {"shape": (1 << 40,)},
        {"dtype": np.dtype(object)},
    ],
    ids=str,
)
def test_bytes_that_a_plain_unpickler_reads_otherwise_are_refused(tmp_path, wrapper, how):
    source = write(tmp_path / "a.joblib", wrapper, ARRAYS[0], **how)
    with pytest.raises(ReadError):
        open_checkpoint(source)


def test_a_plain_unpickler_fails_at_the_bytes(tmp_path, wrapper):
    """Else the bytes could hide what it does, and ckptool would pass over it."""
    for padding in range(0x28):
        source = write(tmp_path / "a.joblib", wrapper, ARRAYS[0], padding=padding)
        with pytest.raises(pickle.UnpicklingError, match="invalid load key"):
            pickle.loads(source.read_bytes())
