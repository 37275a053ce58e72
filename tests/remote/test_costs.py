"""How little of a remote file is read: requests and bytes, counted by the server."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from remote.conftest import tensors
from remote.servers import Site, serving
from safetensors.torch import save_file

import ckptool
from benchmarks.sparse import safetensors_file, sharded, torch_file
from ckptool.formats.files.remote import coalesce_ranges
from ckptool.formats.limits import Limits
from ckptool.locations import RemoteContext

KIB = 1 << 10
ENDS = 80 * KIB
"""The first block, and the tail in which a zip archive could hide."""


def inspected(site: Site, name: str) -> tuple[int, int]:
    """Return the requests and bytes that `inspect` takes, after comparing what it says."""
    site.forget()
    far, near = ckptool.inspect(f"{site.url}/{name}"), ckptool.inspect(site.folder / name)
    assert not far.errors
    assert far.checkpoints[0].states == near.checkpoints[0].states
    return len(site.requests), site.sent


def test_a_hundred_gigabytes(tmp_path: Path):
    torch_file(tmp_path / "model.pth", 100)
    safetensors_file(tmp_path / "model.safetensors", "", 100)
    with (tmp_path / "model.safetensors").open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    for name in ("model.pth", "model.safetensors"):
        assert (tmp_path / name).stat().st_size > 100e9
    with serving(tmp_path) as site:
        requests, nbytes = inspected(site, "model.pth")
        assert (requests, nbytes) <= (4, 64 * KIB)
        requests, nbytes = inspected(site, "model.safetensors")
        assert requests <= 4
        assert nbytes <= ENDS + header


def test_a_terabyte_in_shards(tmp_path: Path):
    sharded(tmp_path / "m", shards=64, each=16)
    with serving(tmp_path) as site:
        requests, nbytes = inspected(site, "m/model.safetensors.index.json")
    index = (tmp_path / "m/model.safetensors.index.json").stat().st_size
    assert requests <= 2 * 64 + 4
    assert nbytes <= 64 * (ENDS + 16 * KIB) + 2 * index


@pytest.mark.parametrize("size", [4, 64, 200])
def test_a_thousand_tensors_are_no_thousand_requests(size: int, tmp_path: Path):
    state = tensors(1000, size)
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "plain.safetensors")
    with serving(tmp_path) as site:
        for name in ("zip.pth", "legacy.pth", "plain.safetensors"):
            requests, nbytes = inspected(site, name)
            assert requests <= 12
            if size == 200:
                assert nbytes < 2 << 20 < (tmp_path / name).stat().st_size // 50


def test_headers_of_no_usual_form_are_read(tmp_path: Path):
    """Members that other tools wrote after one another, one of them with an extra field."""
    import zipfile

    torch.save(tensors(40, 128), tmp_path / "first.pth")
    with (
        zipfile.ZipFile(tmp_path / "first.pth") as old,
        zipfile.ZipFile(tmp_path / "odd.pth", "w") as new,
    ):
        for number, name in enumerate(old.namelist()):
            info = zipfile.ZipInfo(name)
            info.extra = b"XX\x04\x00abcd" if number == 20 else b""
            new.writestr(info, old.read(name))
    with serving(tmp_path) as site:
        requests, _ = inspected(site, "odd.pth")
        skipped = {s.what for s in ckptool.inspect(f"{site.url}/odd.pth").skipped}
        assert "headers before the records" not in skipped
        assert requests < 50
        deep = ckptool.inspect(f"{site.url}/first.pth", limits=Limits(deep=True))
    assert "headers before the records" not in {s.what for s in deep.skipped}


def test_a_header_that_says_something_else_is_found_when_it_is_read(tmp_path: Path):
    torch.save(tensors(40, 128), tmp_path / "model.pth")
    data = bytearray((tmp_path / "model.pth").read_bytes())
    at = data.index(b"model/data/20")
    data[at : at + 13] = b"model/data/99"
    (tmp_path / "model.pth").write_bytes(data)
    with serving(tmp_path) as site:
        url = f"{site.url}/model.pth"
        assert "headers before the records" in {s.what for s in ckptool.inspect(url).skipped}
        (error,) = ckptool.inspect(url, limits=Limits(deep=True)).errors
    assert "is named 'model/data/99' in its local header" in error


def test_values_are_read_about_once(tmp_path: Path):
    save_file(tensors(64, 256), tmp_path / "plain.safetensors")
    size = (tmp_path / "plain.safetensors").stat().st_size
    with serving(tmp_path) as site:
        report = ckptool.diff(f"{site.url}/plain.safetensors", tmp_path / "plain.safetensors")
        assert report.verdict == "identical"
        assert site.sent < 1.5 * size
        assert len(site.requests) < 32


def test_ranges_are_put_together():
    assert coalesce_ranges([(90, 20), (0, 10), (10, 5), (30, 0)], 100, max_gap=2) == [
        (0, 15),
        (90, 10),
    ]
    assert coalesce_ranges([(0, 50), (10, 5), (60, 5)], 100, max_gap=10) == [(0, 65)]
    assert coalesce_ranges([(-5, 10), (200, 5)], 100) == [(0, 5)]


@pytest.mark.process
def test_files_of_this_machine_import_nothing_for_remote_ones(samples: Path):
    code = (
        "import sys, ckptool\n"
        f"ckptool.diff({str(samples / 'model.pth')!r}, {str(samples / 'model.pth')!r})\n"
        "names = ('fsspec', 'requests', 'urllib3', 'ckptool.formats.files.remote', 'http')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def list_contexts() -> set[int]:
    gc.collect()
    return {id(found) for found in gc.get_objects() if type(found) is RemoteContext}


def test_nothing_is_kept_of_a_visit(shelf: Path, site: Site):
    # Other tests of this process may keep theirs, in an exception or a parameter.
    contexts_before = list_contexts()
    for name in ("zip.pth", "plain.safetensors"):
        ckptool.inspect(f"{site.url}/{name}")
    assert list_contexts() <= contexts_before
