"""Digests name content: the same in every container and layout, another one for every change."""

import json
import math
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from files import save_dcp, write_shards
from formats import tar_files
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import examples
from safetensors.torch import save_file
from values.written_tensors import big_endian, described

from ckptool import api
from ckptool.compare.digest import compute_state_digest, digest_checkpoint
from ckptool.errors import ReadError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.modules.tensors.elements import compute_fingerprint
from ckptool.values import elements, fingerprint
from ckptool.values.fingerprint_many import fingerprint_many, fingerprint_tensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8]


def by_hand(tensor: torch.Tensor) -> str:
    """Return the digest as docs/digest.md defines it, written down once more."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    pieces = [data[n : n + (4 << 20)] for n in range(0, len(data), 4 << 20)]
    name, shape = str(tensor.dtype).removeprefix("torch."), str(list(tensor.shape))
    head = b"ckptool-1\0" + name.encode() + shape.encode() + b"\0"
    return blake3(head + b"".join(blake3(p).digest() for p in pieces)).hexdigest()


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(4, 6)
    return {
        "layers.10.weight": torch.randn(3, 5),
        "layers.2.weight": shared[:, ::2].contiguous(),
        "half": torch.randn(7).bfloat16(),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
        "flag": torch.tensor([True, False]),
        "z": torch.randn(3, dtype=torch.complex64),
    }


def named(path: Path, **options) -> str:
    (one,) = api.digest(path, **options).checkpoints
    return one.digest


def sharded(tensors: dict, folder: Path) -> None:
    write_shards(folder, *(dict(list(tensors.items())[n::2]) for n in range(2)))


def dcp(tensors: dict, folder: Path) -> None:
    save_dcp(tensors, folder)


def legacy(tensors: dict, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def reordered(tensors: dict, path: Path) -> None:
    torch.save(dict(reversed(tensors.items())), path)


def nested(tensors: dict, path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": tensors}, path)


def views(tensors: dict, path: Path) -> None:
    """Each tensor as every second element of a larger storage, backwards in memory order."""
    apart = {k: torch.stack([v, v], -1)[..., 1] for k, v in tensors.items()}
    assert not apart["half"].is_contiguous()
    torch.save(apart, path)


def transposed(tensors: dict, path: Path) -> None:
    torch.save({k: v.T.contiguous().T if v.ndim == 2 else v for k, v in tensors.items()}, path)


WRITERS = [
    torch.save, legacy, save_file, sharded, dcp, reordered, nested, views, transposed,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's own, of distributed without a process group
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_the_same_in_every_container(write, tmp_path):
    tensors = state()
    write(tensors, tmp_path / "there")
    (found,) = api.digest(tmp_path / "there").checkpoints
    assert {t.key: t.digest for t in found.tensors} == {k: by_hand(v) for k, v in tensors.items()}
    lines = "".join(f"{key}\0{by_hand(tensors[key])}\n" for key in sorted(tensors))
    assert found.digest == blake3(lines.encode()).hexdigest()


def test_the_same_in_a_tar_of_the_first_torch(tmp_path):
    (found,) = api.digest(tar_files.write(tmp_path / "x.pt")).checkpoints
    (one,) = found.tensors
    assert one.digest == by_hand(tar_files.DATA.reshape(2, 3))


@settings(max_examples=examples(20))  # each writes seven files
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.data())
def test_any_change_gives_another_named(tmp_path_factory, dtype, shape, data):
    folder = tmp_path_factory.mktemp("bits")
    tensor = (torch.arange(math.prod(shape)) % 2).to(dtype).reshape(shape)
    torch.save({"w": tensor}, folder / "a")
    before = named(folder / "a")
    changes = {
        "shape": {"w": tensor[None]},
        "key": {"v": tensor},
        "more": {"w": tensor, "v": tensor},
    }
    other = torch.int8 if dtype is torch.uint8 else torch.uint8
    changes["dtype"] = {"w": tensor.real.to(other)}
    if tensor.numel():
        bits = bytearray(tensor.clone().untyped_storage())
        at = data.draw(st.integers(0, len(bits) - 1))
        bits[at] ^= 1 << (0 if dtype is torch.bool else data.draw(st.integers(0, 7)))
        changes["bit"] = {"w": torch.frombuffer(bits, dtype=dtype).reshape(shape)}
    for name, changed in changes.items():
        torch.save(changed, folder / name)
        assert named(folder / name) != before, name


@settings(max_examples=examples(40))
@given(st.integers(0, 60), st.integers(1, 3), st.integers(8, 90))
def test_pieces_and_threads_change_nothing(tmp_path_factory, numel, jobs, piece):
    """However large tensors are cut and shared among threads, the digest is that of the whole."""
    tensor = torch.arange(numel, dtype=torch.float32)
    info = described(tmp_path_factory.mktemp("pieces") / "data", tensor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "PIECE", piece)
        patch.setattr(elements, "CHUNK", 16)
        expected = fingerprint.fingerprint_chunks(
            "float32", (numel,), [bytes(tensor.untyped_storage())]
        )
        assert fingerprint_many([info, info], jobs) == [expected] * 2
        assert fingerprint_tensor(info) == expected


@pytest.mark.parametrize("numel", [0, 1, (4 << 20) // 4, (4 << 20) // 4 + 1, 3 << 20])
def test_the_format_at_the_edges_of_a_piece(numel, tmp_path):
    tensor = torch.arange(numel, dtype=torch.float32)
    save_file({"t": tensor}, tmp_path / "data")
    (state,) = open_checkpoint(tmp_path / "data").states
    info = state.tensors["t"]
    assert fingerprint_tensor(info) == by_hand(tensor)
    assert fingerprint_many([info], jobs=2) == [by_hand(tensor)]
    assert compute_fingerprint(tensor) == by_hand(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128, torch.int64])
def test_the_other_byte_order(dtype, tmp_path):
    tensor = torch.arange(40).to(dtype).view(5, 8)
    assert fingerprint_tensor(big_endian(tmp_path / "big", tensor)) == by_hand(tensor)


def test_a_known_digest():
    """The format has a name: under that name these digests never change."""
    found = fingerprint.fingerprint_chunks("float32", (2,), [b"\0\0\x80?\0\0\0@"])
    assert found == "f9b1479320226a2818d4389206bb3993998afd49472fb2f8d5334dbd195ca4f9"
    assert (
        compute_state_digest({"w": found})
        == "99dbc94da90b2dc7098fe4591d9a6483da86f992113df8ca3b175ae795307bea"
    )


# What cannot be digested


def test_a_part_never_looks_like_the_whole(tmp_path):
    without_elements = torch.empty(3, device="meta")
    torch.save({"q": without_elements, "w": torch.ones(2)}, tmp_path / "q.pth")
    report = api.digest(tmp_path / "q.pth")
    (one,) = report.checkpoints
    assert one.digest.startswith("partial:")
    assert len(one.digest) == 64
    assert [t.key for t in one.tensors if not t.digest] == ["q"]
    assert [s.what for s in report.skipped] == ["digest of q"]
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    assert named(tmp_path / "w.pth") != one.digest


def test_content_of_parts_is_partial_too():
    assert compute_state_digest({"0": "partial:abc", "1": "f" * 64}).startswith("partial:")


# Places


def test_places(tmp_path):
    both = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}
    torch.save(both, tmp_path / "both.pth")
    torch.save(both["model"], tmp_path / "model.pth")
    (one,) = api.digest(tmp_path / "both.pth").checkpoints
    assert [t.key for t in one.tensors] == ["ema.w", "model.w"]
    assert named(tmp_path / "both.pth", at="model") == named(tmp_path / "model.pth")
    with pytest.raises(UsageError, match=r"no state at --at nowhere; it has: .*ema"):
        api.digest(tmp_path / "both.pth", at="nowhere")


def test_keys_that_two_states_make(tmp_path):
    torch.save({"a": {"b.w": torch.ones(1)}, "a.b": {"w": torch.zeros(1)}}, tmp_path / "x.pth")
    torch.save({"a": {"b.w": torch.ones(1)}, "a.b": {"w": torch.ones(1)}}, tmp_path / "y.pth")
    report = api.digest([tmp_path / "x.pth", tmp_path / "y.pth"])
    assert [t.key for t in report.checkpoints[0].tensors] == ["a.b.w", "a.b.w'"]
    assert report.checkpoints[0].digest != report.checkpoints[1].digest


def test_what_migrate_records_is_what_digest_says(tmp_path):
    torch.save(state(), tmp_path / "old.pth")
    done = api.migrate(tmp_path / "old.pth", tmp_path / "new.safetensors")
    assert done.source_digest == named(tmp_path / "old.pth")
    assert done.result_digest == named(tmp_path / "new.safetensors")


# --check


@pytest.fixture
def before(tmp_path):
    torch.save(state(), tmp_path / "old.pth")
    return tmp_path / "old.pth"


@pytest.fixture
def saved(before, run_command, tmp_path):
    path = tmp_path / "digest.json"
    assert run_command("digest", before, "--format", "json", "-o", path).code == 0
    return path


def test_the_same_content_elsewhere(run_command, saved, tmp_path):
    save_file(state(), tmp_path / "new.safetensors")
    ran = run_command("digest", tmp_path / "new.safetensors", "--against", saved)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{tmp_path}/new.safetensors matches {saved}\n"


def test_what_differs_is_named_by_key(run_command, saved, tmp_path):
    tensors = state()
    tensors["half"][0] += 1
    tensors["count"] = tensors["count"].int()
    del tensors["flag"]
    tensors["new"] = torch.ones(1)
    torch.save(tensors, tmp_path / "new.pth")
    ran = run_command("digest", tmp_path / "new.pth", "--against", saved, "--format", "json")
    assert ran.code == 1
    check = json.loads(ran.out)["check"]
    assert (check["changed"], check["missing"], check["added"]) == (
        ["count", "half"], ["flag"], ["new"],
    )  # fmt: skip
    shown = run_command("digest", tmp_path / "new.pth", "--against", saved).out
    assert "2 changed, 1 missing, 1 added" in shown
    assert (
        run_command("digest", tmp_path / "new.pth", "--against", saved, "--fail-on", "never").code
        == 0
    )


def test_the_place_that_was_digested_is_looked_at_again(run_command, tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(3)}}, tmp_path / "a.pth")
    words = ("digest", tmp_path / "a.pth", "--format", "json", "-o", tmp_path / "d.json")
    assert run_command(*words, "--at", "ema").code == 0
    assert run_command("digest", tmp_path / "a.pth", "--against", tmp_path / "d.json").code == 0
    torch.save({"w": torch.ones(3)}, tmp_path / "b.pth")
    assert run_command("digest", tmp_path / "b.pth", "--against", tmp_path / "d.json").code == 0


def test_what_cannot_be_proved_exits_2(run_command, tmp_path):
    torch.save({"q": torch.empty(3, device="meta")}, tmp_path / "q.pth")
    run_command("digest", tmp_path / "q.pth", "--format", "json", "-o", tmp_path / "d.json")
    ran = run_command("digest", tmp_path / "q.pth", "--against", tmp_path / "d.json")
    assert ran.code == 2
    assert "could not be compared with" in ran.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("{", "is not a report of `ckptool digest --format json`:"),
        ('{"command": "digest"}', "is not a report of `ckptool digest --format json`:"),
        ('{"command": "diff", "format": "", "checkpoints": []}', "a report of diff"),
        ('{"command": "digest", "format": "ckptool-9", "checkpoints": []}', "ckptool-9"),
        ('{"command": "digest", "format": "ckptool-1", "checkpoints": []}', "none of"),
        (
            '{"command": "digest", "format": "ckptool-1", "checkpoints": 3}',
            "is not a report of `ckptool digest --format json`:",
        ),
    ],
)
def test_a_saved_digest_that_cannot_be_used(run_command, before, tmp_path, text, said):
    path = tmp_path / "saved.json"
    if text is not None:
        path.write_text(text)
    ran = run_command("digest", before, "--against", path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert "saved.json" in ran.err


def test_the_checkpoint_is_gone(run_command, saved, before):
    before.unlink()
    ran = run_command("digest", before, "--against", saved)
    assert (ran.code, ran.out) == (2, "")
    assert "no such file" in ran.err


def test_several_paths(ckptool, before, tmp_path):
    ran = ckptool("digest", before, tmp_path / "missing.pth", "-q")
    assert ran.code == 2
    assert ran.out == f"{named(before)}  {before}\n"
    assert "missing.pth: no such file" in ran.err
    assert ckptool("digest", before, before, "--against", before).code == 2


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(100)}, path)
    found = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ReadError, match="truncated"):
        digest_checkpoint(found)
