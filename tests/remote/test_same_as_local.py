"""What is said of a remote checkpoint is what is said of the same one here."""

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from msgspec.structs import replace

import ckptool
from ckptool.reports.inspect import CheckpointReport, InspectReport

REMOTE = ("checksums", "headers before", "sizes before", "files that are not in the index")
"""What is left out of remote files, and is said to be."""


def bare(report: InspectReport) -> CheckpointReport:
    """Return what is reported of the one checkpoint, without its place."""
    assert not report.errors
    (found,) = report.checkpoints
    return replace(found, path="")


def agree(remote: str, here: Path) -> None:
    far, near = ckptool.inspect(remote), ckptool.inspect(here)
    assert bare(far) == bare(near)
    found = [[(f.code, f.key, f.level) for f in report.findings] for report in (far, near)]
    assert found[0] == found[1]
    more = {s.what for s in far.skipped} - {s.what for s in near.skipped}
    assert all(what.startswith(REMOTE) for what in more)
    assert ckptool.inspect(remote).checkpoints[0].path == remote


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth", "plain.safetensors", "sharded", "dcp"])
def test_s3(kind: str, shelf: Path, aws: str):
    agree(f"s3://shelf/{kind}", shelf / kind)
    report = ckptool.diff(f"s3://shelf/{kind}", shelf / kind)
    assert report.verdict == "identical"


@pytest.mark.parametrize(
    "kind",
    [
        "zip.pth",
        "legacy.pth",
        "plain.safetensors",
        "sharded/model.safetensors.index.json",
        "dcp/.metadata",
    ],
)
def test_http(kind: str, shelf: Path, site):
    if kind == "dcp/.metadata":
        far, near = ckptool.inspect(f"{site.url}/{kind}"), ckptool.inspect(shelf / kind)
        assert bare(far) == bare(near)
    else:
        agree(f"{site.url}/{kind}", shelf / kind)
    report = ckptool.diff(shelf / kind, f"{site.url}/{kind}")
    assert report.verdict == "identical"


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth", "plain.safetensors", "sharded", "dcp"])
def test_memory(kind: str, shelf: Path):
    store = fsspec.filesystem("memory")
    store.put(str(shelf / kind), f"/shelf/{kind}", recursive=True)
    agree(f"memory://shelf/{kind}", shelf / kind)
    assert ckptool.diff(f"memory://shelf/{kind}", shelf / kind).verdict == "identical"


@pytest.mark.parametrize("kind", ["zip.pth", "sharded"])
def test_hub(kind: str, shelf: Path, endpoint, ckptool: Callable):
    """In a process of its own: huggingface_hub reads its endpoint once, when it is imported."""
    url, asked = endpoint
    place = f"hf://org/repo@v2/{kind}"
    far = ckptool("inspect", "--format", "json", place, HF_ENDPOINT=url)
    near = ckptool("inspect", "--format", "json", shelf / kind)
    assert (far.code, far.err) == (0, "")
    told, expected = (json.loads(done.out)["checkpoints"] for done in (far, near))
    assert told[0].pop("path") == place
    assert expected[0].pop("path") == str(shelf / kind)
    assert told == expected
    assert any(what == "/api/models/org/repo/revision/v2" for what, _ in asked)
    assert ckptool("diff", place, shelf / kind, HF_ENDPOINT=url).out.startswith("identical")


def test_hub_says_what_is_not_there(endpoint, ckptool: Callable):
    """In a process of its own, as above."""
    url, _ = endpoint
    for place in ("hf://org/repo@v2/none.pth", "hf://org/repo@v3/zip.pth"):
        done = ckptool("inspect", place, HF_ENDPOINT=url)
        assert (done.code, done.err) == (2, f"ckptool: {place}: no such file\n")


def test_values_that_differ_are_found(shelf: Path, site, tmp_path: Path):
    import torch

    state = torch.load(shelf / "legacy.pth")
    state["layers.59.weight"][31, 31] += 1
    torch.save(state, tmp_path / "new.pth")
    report = ckptool.diff(f"{site.url}/legacy.pth", tmp_path / "new.pth")
    assert report.value_keys == ("layers.59.weight",)


def test_deep_compares_checksums(shelf: Path, site, tmp_path: Path):
    from remote.servers import serving

    from ckptool.formats.limits import Limits

    data = bytearray((shelf / "zip.pth").read_bytes())
    data[data.index(b"data/7") + 200] ^= 1
    (tmp_path / "broken.pth").write_bytes(data)
    with serving(tmp_path) as other:
        url = f"{other.url}/broken.pth"
        assert not ckptool.inspect(url).errors
        (error,) = ckptool.inspect(url, limits=Limits(deep=True)).errors
        assert "does not match its checksum" in error
    deep = ckptool.inspect(f"{site.url}/zip.pth", limits=Limits(deep=True))
    assert bare(deep) == bare(ckptool.inspect(shelf / "zip.pth"))
    assert not {s.what for s in deep.skipped} & {"checksums of the storages", REMOTE[1]}
