"""Indexes of shards: what they may name, and where index and shards disagree."""

import json
import os
from pathlib import Path

import pytest
import torch
from containers import entry, index_json, safetensors_bytes, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptool.errors import CkptoolError, CorruptCheckpointError, ReadError
from ckptool.formats import open_checkpoint
from ckptool.model import Container, ContainerIssue, IssueKind

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def shard(*keys: str) -> bytes:
    header = {key: entry(data_offsets=[16 * n, 16 * n + 16]) for n, key in enumerate(keys)}
    return safetensors_bytes(header, bytes(16 * len(keys)))


def sharded(folder: Path, index: str, **others: bytes | str) -> Path:
    return write(folder, {ONE: shard("a"), TWO: shard("b"), INDEX: index, **others})


def test_whole_description(tmp_path):
    folder = sharded(tmp_path / "ck", index_json(b=TWO, a=ONE))
    checkpoint = open_checkpoint(folder)
    (state,) = checkpoint.states
    assert checkpoint.path == folder
    assert checkpoint.container is Container.SHARDED_SAFETENSORS
    assert checkpoint.nbytes == sum(path.stat().st_size for path in folder.iterdir())
    assert checkpoint.files == (folder / ONE, folder / TWO)
    assert checkpoint.metadata == {"total_size": "32"}
    assert checkpoint.faults == ()
    assert {key: tensor.span.path for key, tensor in state.tensors.items()} == {
        "a": folder / ONE,
        "b": folder / TWO,
    }


def test_the_index_itself_names_the_checkpoint(tmp_path):
    folder = sharded(tmp_path, index_json(a=ONE, b=TWO))
    renamed = (folder / INDEX).rename(folder / "whatever.txt")
    assert list(open_checkpoint(renamed).states[0].tensors) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.fp16.json", "x.y.safetensors.index.json"]
)
def test_names_of_indexes(tmp_path, name):
    write(tmp_path, {"s.safetensors": shard("a"), name: index_json(a="s.safetensors")})
    assert list(open_checkpoint(tmp_path).states[0].tensors) == ["a"]


def test_links_of_the_hugging_face_cache(tmp_path):
    blobs = write(
        tmp_path / "blobs", {"1": shard("a"), "2": shard("b"), "3": index_json(a=ONE, b=TWO)}
    )
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for name, blob in {ONE: "1", TWO: "2", INDEX: "3"}.items():
        (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    assert list(open_checkpoint(snapshot).states[0].tensors) == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/hostname",
        "../../../../../../etc/passwd",
        "sub/../../secret.safetensors",
        "sub/shard.safetensors",
        "..\\secret.safetensors",
        "..",
        ".",
        "",
        "model\0.safetensors",
        "model\x1b[31m.safetensors",
        "model\u202e.safetensors",
    ],
)
def test_shards_elsewhere(tmp_path, name):
    """I-PATH: a name with a way in it is refused, whether or not something is there."""
    write(tmp_path, {"secret.safetensors": shard("a")})
    folder = write(
        tmp_path / "ck", {ONE: shard("b"), INDEX: json.dumps({"weight_map": {"a": name}})}
    )
    reasons = r"is not the name of a file|is absolute or has `\.\.`|is in the same folder"
    with pytest.raises(ReadError, match=reasons) as caught:
        open_checkpoint(folder)
    assert str(caught.value).isprintable()


REFUSED = {
    "I-JSON empty": ("", "is empty"),
    "I-JSON text": ("hello", "not a JSON object"),
    "I-JSON list": ("[]", "not a JSON object"),
    "I-JSON cut": ('{"weight_map": {"a"', "not valid JSON"),
    "I-JSON twice": ('{"weight_map": {}}{}', "follows the index's JSON"),
    "I-JSON no map": ('{"metadata": {}}', "weight_map is missing"),
    "I-JSON map is a list": ('{"weight_map": []}', "weight_map is a list"),
    "I-JSON map is null": ('{"weight_map": null}', "weight_map is null"),
    "I-JSON number": ('{"weight_map": {"a": 1}}', "a number under 'a'"),
    "I-JSON metadata": ('{"metadata": ["x"], "weight_map": {}}', "its metadata is a list"),
    "I-JSON duplicate": ('{"weight_map": {"a": "1", "a": "2"}}', "'a' appears twice"),
    "I-JSON duplicate map": ('{"weight_map": {}, "weight_map": {}}', "'weight_map' appears twice"),
    "I-SHARD is the index": (index_json(a=INDEX), "is a JSON file"),
    "I-SHARD is nowhere": (index_json(a="x", b="y"), "none of its 2 shards is in the same folder"),
    "an LFS pointer": ("version https://git-lfs.github.com/spec/v1\nsize 12\n", "git lfs pull"),
}


@pytest.mark.parametrize(("index", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path, index, reason):
    with pytest.raises(ReadError, match=reason):
        open_checkpoint(sharded(tmp_path, index))


def test_shard_that_cannot_be_read(tmp_path):
    folder = sharded(tmp_path, index_json(a=ONE, b=TWO))
    (folder / TWO).write_bytes(shard("b")[:-1])
    with pytest.raises(CorruptCheckpointError, match=rf"{TWO}: .* truncated"):
        open_checkpoint(folder)


def test_shard_that_is_a_pipe(tmp_path):
    """I-SPECIAL: it is refused at once, without waiting for a writer."""
    folder = sharded(tmp_path, index_json(a=ONE, b=TWO))
    (folder / TWO).unlink()
    os.mkfifo(folder / TWO)
    with pytest.raises(ReadError, match="a named pipe"):
        open_checkpoint(folder)


def test_missing_shard(tmp_path):
    folder = sharded(tmp_path, index_json(a=ONE, b=TWO, c=TWO))
    (folder / TWO).unlink()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.faults == (
        ContainerIssue(IssueKind.MISSING_SHARD, TWO, {"fault": "does not exist", "tensors": "2"}),
    )
    assert list(checkpoint.states[0].tensors) == ["a"]


def test_shard_that_links_to_nothing(tmp_path):
    folder = sharded(tmp_path, index_json(a=ONE, b=TWO))
    (folder / TWO).unlink()
    (folder / TWO).symlink_to("../../blobs/gone")
    (fault,) = open_checkpoint(folder).faults
    assert (fault.kind, fault.facts["fault"]) == (IssueKind.MISSING_SHARD, "is a dangling link")


def test_tensor_in_another_shard(tmp_path):
    checkpoint = open_checkpoint(sharded(tmp_path, index_json(a=TWO, b=ONE)))
    assert checkpoint.faults == (
        ContainerIssue(IssueKind.MISPLACED_TENSOR, "a", {"shard": TWO, "found": ONE}),
        ContainerIssue(IssueKind.MISPLACED_TENSOR, "b", {"shard": ONE, "found": TWO}),
    )
    assert sorted(checkpoint.states[0].tensors) == ["a", "b"]


def test_tensor_in_no_shard(tmp_path):
    checkpoint = open_checkpoint(sharded(tmp_path, index_json(a=ONE, b=TWO, c=ONE)))
    assert checkpoint.faults == (ContainerIssue(IssueKind.MISSING_TENSOR, "c", {"shard": ONE}),)


def test_strays(tmp_path):
    extra = {
        TWO: shard("b", "c"),
        "model-00003-of-00003.safetensors": b"",
        "other.safetensors": b"",
    }
    checkpoint = open_checkpoint(sharded(tmp_path, index_json(a=ONE, b=TWO), **extra))
    assert checkpoint.faults == (
        ContainerIssue(IssueKind.UNINDEXED, "c", {"what": "the tensor", "shard": TWO}),
        ContainerIssue(
            IssueKind.UNINDEXED, "model-00003-of-00003.safetensors", {"what": "the shard"}
        ),
    )
    assert list(checkpoint.states[0].tensors) == ["a", "b", "c"]


@pytest.mark.parametrize("meant", [ONE, TWO])
def test_key_in_two_shards(tmp_path, meant):
    index = json.dumps({"weight_map": {"a": meant, "b": TWO, "x": ONE}})
    folder = sharded(tmp_path, index, **{ONE: shard("a", "x"), TWO: shard("a", "b")})
    checkpoint = open_checkpoint(folder)
    other = TWO if meant == ONE else ONE
    kinds = [fault.kind for fault in checkpoint.faults]
    # transformers reads the shards in order, so that the tensor of the last one stays.
    assert kinds == [IssueKind.UNINDEXED] + [IssueKind.PASSED_OVER] * (meant == ONE)
    assert checkpoint.faults[0] == ContainerIssue(
        IssueKind.UNINDEXED, "a", {"what": "a second tensor", "shard": other}
    )
    assert checkpoint.states[0].tensors["a"].span.path == folder / meant


def test_versions_and_metadata_of_all_shards(tmp_path):
    for name, key, version in ((ONE, "a", 1), (TWO, "b", 2)):
        metadata = {"format": "pt", "ckptool.versions": json.dumps({key: version})}
        save_file({key: torch.ones(4)}, tmp_path / name, metadata)
    write(tmp_path, {INDEX: index_json(a=ONE, b=TWO)})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.states[0].versions == {"a": 1, "b": 2}
    assert checkpoint.metadata == {"total_size": "32", "format": "pt"}


def test_torch_shards(tmp_path):
    one, two = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    shared = torch.arange(4.0)
    torch.save({"a": shared, "tied": shared}, tmp_path / one)
    torch.save({"b": torch.arange(4.0)}, tmp_path / two)
    write(tmp_path, {"pytorch_model.bin.index.json": index_json(a=one, tied=one, b=two)})
    checkpoint = open_checkpoint(tmp_path)
    (state,) = checkpoint.states
    assert checkpoint.container is Container.SHARDED_TORCH
    assert sorted(state.tensors) == ["a", "b", "tied"]
    assert state.tensors["a"].storage == state.tensors["tied"].storage
    assert state.tensors["a"].storage != state.tensors["b"].storage
    assert checkpoint.faults == ()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("/tmp/never-made-by-ckptool",)


def test_globals_of_all_shards(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "1.bin")
    torch.save({"b": torch.ones(1), "evil": Payload()}, tmp_path / "2.bin")
    write(tmp_path, {"m.bin.index.json": index_json(a="1.bin", b="2.bin")})
    names = {use.qualified_name for use in open_checkpoint(tmp_path).globals}
    assert {"posix.mkdir", "torch._utils._rebuild_tensor_v2"} <= names
    assert not Path("/tmp/never-made-by-ckptool").exists()


names = st.sampled_from(["a", "b", "c"])
files = st.sampled_from([ONE, TWO, "x.safetensors"])


@given(st.dictionaries(names, files), st.dictionaries(files, st.sets(names)))
def test_faults_are_the_difference(tmp_path_factory, weight_map, held):
    """What the index says, what the shards hold, and what is reported of it always add up."""
    folder = tmp_path_factory.mktemp("ck")
    contents = {name: shard(*sorted(keys)) for name, keys in held.items()}
    write(folder, {**contents, INDEX: json.dumps({"weight_map": weight_map})})
    if weight_map and not set(weight_map.values()) & set(held):
        with pytest.raises(CkptoolError, match="none of its"):
            open_checkpoint(folder)
        return
    checkpoint = open_checkpoint(folder)
    found = {kind: [f.key for f in checkpoint.faults if f.kind is kind] for kind in IssueKind}
    meant = {(key, name) for key, name in weight_map.items() if name in held}
    here = {(key, name) for name in set(weight_map.values()) & set(held) for key in held[name]}
    assert found[IssueKind.MISSING_SHARD] == sorted(set(weight_map.values()) - set(held))
    here_keys = {key for key, _ in here}
    absent = {key for key, _ in meant - here}
    assert sorted(found[IssueKind.MISSING_TENSOR]) == sorted(absent - here_keys)
    assert sorted(found[IssueKind.MISPLACED_TENSOR]) == sorted(absent & here_keys)
    assert set(checkpoint.states[0].tensors) == {key for key, _ in here}
    if not weight_map.keys() - {key for key, _ in meant & here}:
        strays = [key for key, _ in here - meant]
        assert sorted(set(found[IssueKind.UNINDEXED]) - {ONE, TWO}) == sorted(set(strays))
