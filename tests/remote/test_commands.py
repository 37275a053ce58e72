"""Migrate, verify and the command line on remote places; what is only written here."""

import mailbox
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from remote.servers import serving
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.config import ModelEntry, ProjectConfig, Settings
from ckptool.errors import CkptoolError, UsageError
from ckptool.locations import RemotePath, mask_credentials, parse_location


def test_migrate_from_the_web(shelf: Path, site, tmp_path: Path):
    far = ckptool.migrate(f"{site.url}/legacy.pth", tmp_path / "far.safetensors")
    near = ckptool.migrate(shelf / "legacy.pth", tmp_path / "near.safetensors")
    assert far.result_digest == near.result_digest
    assert (tmp_path / "far.safetensors").read_bytes() == (
        tmp_path / "near.safetensors"
    ).read_bytes()


def test_migrate_keeps_the_rest_of_a_remote_file(shelf: Path, site, tmp_path: Path):
    ckptool.migrate(
        f"{site.url}/zip.pth", tmp_path / "new.pth", at="state_dict", drop=["layers.3.weight"]
    )
    old, new = torch.load(shelf / "zip.pth"), torch.load(tmp_path / "new.pth")
    assert (new["epoch"], new["config"]) == (3, {"d": 32})
    assert old["state_dict"].keys() - new["state_dict"].keys() == {"layers.3.weight"}
    assert all(torch.equal(old["state_dict"][k], v) for k, v in new["state_dict"].items())


def test_migrate_shards_from_s3(shelf: Path, aws: str, tmp_path: Path):
    """Files that do not change are copied: nothing can be linked to a bucket."""
    ckptool.migrate("s3://shelf/sharded", tmp_path / "new", drop=["s0.layers.0.weight"])
    names = sorted(path.name for path in (tmp_path / "new").glob("*.safetensors"))
    assert names == sorted(path.name for path in (shelf / "sharded").glob("*.safetensors"))
    for name in names[1:]:
        assert (tmp_path / "new" / name).read_bytes() == (shelf / "sharded" / name).read_bytes()
    assert "s0.layers.0.weight" not in load_file(tmp_path / "new" / names[0])


def test_migrate_takes_a_value_from_the_web(shelf: Path, site, tmp_path: Path):
    place = f"file:{site.url}/plain.safetensors?sig=s3cret#layers.1.weight"
    report = ckptool.migrate(
        shelf / "legacy.pth", tmp_path / "new.safetensors", inject={"more": place}
    )
    made = load_file(tmp_path / "new.safetensors")
    assert torch.equal(made["more"], made["layers.1.weight"])
    assert "s3cret" not in str(report)
    assert b"s3cret" not in (tmp_path / "new.safetensors").read_bytes()


def test_migrate_writes_nothing_where_the_source_changes(shelf: Path, tmp_path: Path):
    store = fsspec.filesystem("memory")
    store.pipe("/moving.pth", (shelf / "legacy.pth").read_bytes())

    def change(_: int) -> None:
        store.pipe("/moving.pth", (shelf / "legacy.pth").read_bytes())

    with pytest.raises(CkptoolError, match=r"memory://moving.pth: changed while it was read"):
        ckptool.migrate("memory://moving.pth", tmp_path / "new.safetensors", progress=change)
    assert list(tmp_path.iterdir()) == []


def test_verify_on_the_web(site, shelf: Path, tmp_path: Path, samples: Path, ckptool: Callable):
    with serving(samples) as web:
        done = ckptool(
            "verify", f"{web.url}/model.pth", "-m", "samples.attention:CausalAttentionWithBuffer",
            "--device", "cpu", "-k", "d_in=3", "-k", "d_out=2", "-k", "context_length=6",
            "-k", "dropout=0.0", "-k", "qkv_bias=False",
        )  # fmt: skip
        near = ckptool(
            "verify", samples / "model.pth", "-m", "samples.attention:CausalAttentionWithBuffer",
            "--device", "cpu", "-k", "d_in=3", "-k", "d_out=2", "-k", "context_length=6",
            "-k", "dropout=0.0", "-k", "qkv_bias=False",
        )  # fmt: skip
        assert done.code == near.code
        assert done.out.replace(web.url, str(samples)).splitlines()[0] == near.out.splitlines()[0]


def test_diff_with_a_module_named_for_a_bucket(shelf: Path, aws: str):
    entry = ModelEntry(
        path="s3://shelf/*", module="torch.nn:Linear", kwargs={"in_features": 1, "out_features": 1}
    )
    config = ProjectConfig(Settings(models=(entry,)))
    report = ckptool.diff("s3://shelf/legacy.pth", config=config)
    assert report.module.startswith("torch.nn:Linear")
    fsspec.filesystem("memory").pipe("/x", (shelf / "legacy.pth").read_bytes())
    with pytest.raises(UsageError, match=r"^memory://x: no module"):
        ckptool.diff("memory://x", config=config)


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "samples/model.pth", "-o", "s3://bucket/report.txt"),
        ("migrate", "samples/model.pth", "-o", "s3://bucket/new.pth"),
        ("migrate", "samples/model.pth", "--dry-run", "--save-plan", "s3://bucket/plan.toml"),
    ],
)
def test_nothing_is_written_to_a_remote_place(words: tuple[str, ...], run_command: Callable):
    done = run_command(*words)
    option = words[-2]
    reason = "remote outputs are not supported: write a local file and upload it"
    assert (done.code, done.out) == (2, "")
    assert done.err == f"ckptool: {option} {words[-1]}: {reason}\n"


def test_nothing_is_written_to_a_remote_place_by_the_library(samples: Path):
    with pytest.raises(
        UsageError, match="remote outputs are not supported: write a local file and upload it"
    ):
        ckptool.migrate(samples / "model.pth", "s3://bucket/new.pth")


def test_what_is_remote():
    assert parse_location("C:\\x") == Path("C:\\x")
    assert parse_location("C://x") == Path("C://x")
    assert parse_location("file:///a%20b") == Path("/a b")
    assert parse_location("a://b") == Path("a://b")
    assert isinstance(parse_location("hf://org/repo@main/x.pth"), RemotePath)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/a/b.pth?X-Amz-Signature=abc&x=1#y", "https://h/a/b.pth?***"),
        ("https://me:pw@h/b.pth", "https://***@h/b.pth"),
        ("https://token@h/b.pth", "https://***@h/b.pth"),
        ("s3://key:secret@bucket/b.pth", "s3://***@bucket/b.pth"),
        ("hf://org/repo@v1/b.pth", "hf://org/repo@v1/b.pth"),
        ("hf://gpt2@main/b.pth", "hf://gpt2@main/b.pth"),
        ("s3://bucket/what?=1.pth", "s3://bucket/what?=1.pth"),
        ("HTTPS://h/b.pth", "https://h/b.pth"),
    ],
)
def test_what_is_shown_of_a_place(url: str, shown: str):
    path = RemotePath(url)
    assert str(path) == shown
    assert path.name.endswith(".pth")
    assert path.suffix == ".pth"


def test_steps():
    path = RemotePath("https://me:pw@h/a%20b/m.index.json?sig=1")
    assert (path.name, path.parent.url) == ("m.index.json", "https://me:pw@h/a%20b?sig=1")
    shard = path.parent / "x #1.safetensors"
    assert shard.url == "https://me:pw@h/a%20b/x%20%231.safetensors?sig=1"
    assert shard.name == "x #1.safetensors"
    assert path.with_name("y").url == "https://me:pw@h/a%20b/y?sig=1"
    assert shard.context is path.context
    assert path.url_without_secrets == "https://h/a%20b/m.index.json"
    assert RemotePath("s3://bucket").parent.url == "s3://bucket"
    assert (RemotePath("s3://b/x #1") / "y%").url == "s3://b/x #1/y%"
    with pytest.raises(TypeError):
        os.fspath(path)


def test_masks():
    said = "cannot ask https://me:pw@h/x?X-Amz-Signature=abc&y=1, try http://h/?a=b"
    assert mask_credentials(said) == "cannot ask https://***@h/x?*** try http://h/?***"


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_gate_searches_tensors_of_bytes_on_the_web(name, tmp_path: Path, run_command: Callable):
    """A pickle in a tensor of bytes passed the gate where the file was remote, without a word."""
    payload = pickle.dumps(mailbox.Maildir)
    with serving(tmp_path) as site:
        for content, expected in ((payload, 1), (bytes(range(64)), 0)):
            state = {
                "w": torch.ones(2),
                "x": torch.frombuffer(bytearray(content), dtype=torch.uint8),
            }
            (torch.save if name == "x.pth" else save_file)(state, tmp_path / name)
            ran = run_command("gate", "--no-values", f"{site.url}/{name}")
            assert ran.code == expected, ran
            (tmp_path / name).unlink()
        torch.save(state, tmp_path / name)
        assert "pickles in 1 tensor of bytes" in run_command("inspect", f"{site.url}/{name}").out
