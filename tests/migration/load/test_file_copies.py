"""Copies of bytes from mapped files into modules: what torch itself would have put there."""

import copy
import mmap
import os
import pickle

import pytest
import torch
from files import same_bits, save
from safetensors.torch import save_file
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import ckptool
from ckptool.errors import ReadError
from ckptool.migration.load import file_copies, module_load
from ckptool.migration.load.file_copies import FileCopies, MappedFile

ROWS = 1_100_000 // 256
"""Rows of 256 float32: about as many bytes as a job of the tests has."""


@pytest.fixture(autouse=True, params=[0, None], ids=["put off", "as in use"])
def sizes(request, monkeypatch):
    """Have copies of a few bytes put off, in jobs of 4 MiB; or the sizes that are in use."""
    if request.param is not None:
        monkeypatch.setattr(module_load, "_MAX_SMALL_NBYTES", request.param)
        monkeypatch.setattr(file_copies, "_JOB_NBYTES", 4 << 20)


class Flat(nn.Module):
    """Parameters that are parts of one storage, side by side."""

    def __init__(self):
        super().__init__()
        whole = torch.zeros(6, 256)
        self.first, self.second = nn.Parameter(whole[:2]), nn.Parameter(whole[2:])


class Overlapping(nn.Module):
    def __init__(self):
        super().__init__()
        whole = torch.zeros(6, 256)
        self.first, self.second = nn.Parameter(whole[:4]), nn.Parameter(whole[2:])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(256, ROWS, bias=False)
        self.second = nn.Linear(256, ROWS, bias=False)
        self.second.weight = self.first.weight


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(256, ROWS).t())
        self.register_buffer("count", torch.tensor(0))


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n + 1, 3) for n in range(60))
        self.large = nn.Parameter(torch.zeros(3 * ROWS, 256))


def fill(shape_of: nn.Module) -> dict:
    """Return a state_dict of other values, and of other ones under each name of a tied tensor."""
    return {
        key: torch.randint(-1000, 1000, tensor.shape).to(tensor.dtype)
        for key, tensor in shape_of.state_dict().items()
    }


@pytest.mark.parametrize("make", [Flat, Overlapping, Transposed, Many])
@pytest.mark.parametrize("container", ["pth", "safetensors"])
@pytest.mark.parametrize("cast", [None, torch.float64, torch.bfloat16])
def test_the_module_has_what_torch_copies(make, container, cast, tmp_path):
    module, expected = (make() if cast is None else make().to(cast) for _ in range(2))
    state = fill(make())
    path = tmp_path / f"model.{container}"
    (torch.save if container == "pth" else save_file)(state, path)
    versions = {key: tensor._version for key, tensor in module.state_dict(keep_vars=True).items()}
    parameters = dict(module.named_parameters())
    expected.load_state_dict(state)
    ckptool.load(module, path)
    for key, tensor in module.state_dict(keep_vars=True).items():
        assert same_bits(tensor.detach(), expected.state_dict()[key]), key
        assert tensor._version > versions[key]  # autograd knows that it was written
    assert all(module.get_parameter(name) is p for name, p in parameters.items())


def test_of_two_values_for_a_tied_tensor_the_second_stays(tmp_path):
    module, expected = Tied(), Tied()
    state = {key: torch.randn(ROWS, 256) for key in module.state_dict()}
    path = save(tmp_path / "model.pth", state)
    with pytest.raises(ckptool.LoadError, match="CK502"):
        ckptool.load(module, path)
    expected.load_state_dict(state)
    ckptool.load(module, path, accept=["CK502"])
    assert module.first.weight is module.second.weight
    assert torch.equal(module.first.weight, expected.first.weight)


def map_file(path):
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    elements = torch.frombuffer(pages, dtype=torch.float32)
    return MappedFile(path, elements.data_ptr(), pages), elements


@pytest.mark.skipif(os.name == "nt", reason="a mapped file cannot be cut there")
def test_a_file_that_is_cut_meanwhile_is_an_error(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(1 << 20))
    file, elements = map_file(path)
    target = torch.zeros(len(elements))
    assert (target.data_ptr() - file.address) % 64 == 0  # so that the system copies
    os.truncate(path, 1 << 19)
    with pytest.raises(ReadError, match="are needed but the file has"):  # noqa: SIM117
        with FileCopies([file]):
            target.copy_(elements)


def test_an_operator_sees_what_was_copied_before_it(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(torch.arange(1 << 18, dtype=torch.float32).numpy().tobytes())
    file, elements = map_file(path)
    target, other = torch.zeros(len(elements)), torch.zeros(len(elements))
    with FileCopies([file]):
        target.copy_(elements)
        other.add_(target)
        target.copy_(elements.flip(0))  # not a view of the file
    assert torch.equal(other, torch.arange(1 << 18, dtype=torch.float32))
    assert torch.equal(target, other.flip(0))


def test_the_error_of_torch_comes_after_its_copies(tmp_path):
    class Refusing(nn.Linear):
        def load_state_dict(self, *args, **kwargs):
            super().load_state_dict(*args, **kwargs)
            raise RuntimeError("afterwards")

    module = Refusing(256, 400)
    before = copy.deepcopy(module.state_dict())
    path = save(tmp_path / "model.pth", fill(nn.Linear(256, 400)))
    with pytest.raises(ckptool.LoadError, match="afterwards"):
        ckptool.load(module, path)
    assert all(same_bits(tensor, before[key]) for key, tensor in module.state_dict().items())


def write_in_chunks(path, state, blocks):
    """Write a distributed checkpoint as several ranks would: `blocks` of each tensor by itself.

    `blocks` is key -> slices of the chunks.
    """
    pieces = {
        f"{key} {number}": state[key][block].clone()
        for key in state
        for number, block in enumerate(blocks[key])
    }
    dcp.save(pieces, checkpoint_id=path, no_dist=True)
    reader = dcp.FileSystemReader(path)
    metadata = reader.read_metadata()
    places = {(index.fqn): info for index, info in metadata.storage_data.items()}
    kinds, metadata.storage_data = metadata.state_dict_metadata, {}
    metadata.state_dict_metadata = {}
    for key, tensor in state.items():
        kind = kinds[f"{key} 0"]
        kind.size, kind.chunks = tensor.shape, []
        for number, block in enumerate(blocks[key]):
            starts = torch.Size(part.start or 0 for part in block)
            sizes = tensor[block].shape
            kind.chunks.append(ChunkStorageMetadata(starts, sizes))
            metadata.storage_data[MetadataIndex(key, starts)] = places[f"{key} {number}"]
        metadata.state_dict_metadata[key] = kind
    metadata.planner_data = {key: (key,) for key in state}
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def have_same_bits(one, other):
    return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)


class Chunked(nn.Module):
    """Parameters as a distributed checkpoint has them: in rows, in columns, in tiles, whole."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(512, 128, dtype=dtype))
        self.columns = nn.Parameter(torch.randn(128, 512, dtype=dtype))
        self.tiles = nn.Parameter(torch.randn(256, 256, dtype=dtype))
        self.whole = nn.Parameter(torch.randn(256, 256, dtype=dtype))
        self.turned = nn.Parameter(torch.randn(256, 256, dtype=dtype).t())
        self.small = nn.Parameter(torch.randn(4, dtype=dtype))


ALL = slice(None)
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
BLOCKS = {
    "rows": [(slice(0, 200), ALL), (slice(200, 512), ALL)],
    "columns": [(ALL, slice(0, 300)), (ALL, slice(300, 512))],
    "tiles": [(slice(r, r + 128), slice(c, c + 128)) for r in (0, 128) for c in (128, 0)],
    "whole": [(ALL, ALL)],
    "turned": [(slice(0, 100), ALL), (slice(100, 256), ALL)],
    "small": [(slice(0, 1),), (slice(1, 4),)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_arrive_as_torch_puts_them(tmp_path, dtype):
    saved, expected, loaded = Chunked(), Chunked(dtype), Chunked(dtype)
    write_in_chunks(tmp_path / "dcp", saved.state_dict(), BLOCKS)
    wanted = {key: torch.empty_like(value) for key, value in saved.state_dict().items()}
    dcp.load(wanted, checkpoint_id=tmp_path / "dcp", no_dist=True)
    expected.load_state_dict(wanted)

    ckptool.load(loaded, tmp_path / "dcp")
    assert have_same_bits(loaded.state_dict(), expected.state_dict())
    assert have_same_bits(dict(ckptool.tensors(tmp_path / "dcp")), saved.state_dict())
    on_meta = Chunked().to("meta")
    ckptool.load(on_meta, tmp_path / "dcp", assign=True)
    assert have_same_bits(on_meta.state_dict(), saved.state_dict())


def test_chunks_are_not_put_together(tmp_path, monkeypatch):
    """Nothing of the size of a whole tensor is made besides the module's."""
    saved, loaded = Chunked(), Chunked()
    write_in_chunks(tmp_path / "dcp", saved.state_dict(), BLOCKS)
    sizes = []
    real_empty = torch.empty

    def empty(*args, **kwargs):
        tensor = real_empty(*args, **kwargs)
        sizes.append(0 if tensor.is_meta else tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    ckptool.load(loaded, tmp_path / "dcp")
    assert have_same_bits(loaded.state_dict(), saved.state_dict())
    assert max(sizes) < 1 << 16


class Doubling(Chunked):
    """Loading code of its own, which gets the whole tensor."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[f"{prefix}rows"] = state_dict[f"{prefix}rows"] * 2
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_own_code_gets_whole_tensors(tmp_path):
    saved, loaded = Doubling(), Doubling()
    write_in_chunks(tmp_path / "dcp", saved.state_dict(), BLOCKS)
    ckptool.load(loaded, tmp_path / "dcp")
    assert torch.equal(loaded.rows, saved.rows * 2)
