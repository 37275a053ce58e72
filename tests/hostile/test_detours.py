"""Ways round a gate by what stands beside a checkpoint, and by other names of it.

A payload beside a checkpoint is run by torch.load(weights_only=False) in a scratch folder; what a
library would load in place of the shards is asked of a plain reading of the files; a name is held
to what the gate says of the file's own name.
"""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from files import save_dcp
from hostile.pickles import MARKER, call, mapping, name, pickled, text
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore::UserWarning")]

PAYLOAD = pickled(call(name("mailbox", "Maildir"), text(MARKER)))
UNKNOWN = pickled(call(name("a_package.that_is.nowhere", "Net"), text(MARKER)))
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"


def write_sharded(folder: Path, index: str = INDEX, shard: str = SHARD) -> Path:
    if shard.endswith(".bin"):
        torch.save({"w": torch.ones(4)}, folder / shard)
    else:
        save_file({"w": torch.ones(4)}, folder / shard, {"format": "pt"})
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": {"w": shard}}))
    return folder


def write_single(folder: Path) -> Path:
    save_file({"w": torch.ones(4)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_distributed(folder: Path) -> Path:
    return save_dcp({"w": torch.ones(4)}, folder)


WRITERS = [write_sharded, write_single, write_distributed]
NAMES = [
    "pytorch_model.bin", "adapter_model.bin", ".hidden.bin", "optimizer.pt", "training_args.bin",
    "model.pkl", "consolidated.00.pth", "MODEL.PT", "last.ckpt", "weights.pickle",
]  # fmt: skip


ASKED = {
    (write_sharded, "adapter_model.bin"),
    (write_distributed, "pytorch_model.bin"),
    (write_distributed, "adapter_model.bin"),
}
"""Folders of two checkpoints, of which no library says which is the one."""


def release(folder: Path, write) -> Path:
    place = folder / "release"
    place.mkdir()
    return write(place)


@pytest.mark.parametrize("beside", NAMES)
@pytest.mark.parametrize("write", WRITERS)
def test_a_payload_beside_what_is_judged(folder, run_gate, ask_torch, write, beside):
    place = release(folder, write)
    torch.save({"w": torch.ones(4)}, place / beside)
    code, output = run_gate(place)
    if (write, beside) in ASKED:
        assert (code, "choose one of" in output) == (2, True), output
    elif not (write is write_single and beside in {"pytorch_model.bin", "adapter_model.bin"}):
        assert (code, beside in output) == (0, True), "the twin passes, and is named"
    for content in (PAYLOAD, UNKNOWN):
        (place / beside).write_bytes(content)
        assert ask_torch(place / beside, "everything")["ran"] is (content is PAYLOAD)
        code, output = run_gate(place)
        assert (code in {1, 2}, beside in output) == (True, True), output


@pytest.mark.parametrize("beside", ["pytorch_model.bin", "optimizer.pt"])
def test_a_file_beside_that_cannot_be_read(folder, run_gate, beside):
    place = release(folder, write_sharded)
    torch.save({"w": torch.ones(4)}, place / beside)
    (place / beside).write_bytes((place / beside).read_bytes()[:-30])
    code, output = run_gate(place)
    assert (code, beside in output, "CK314" in output) == (1, True, True)


@pytest.mark.parametrize("beside", ["tf_model.h5", "notes.txt", "model.bin.md5"])
def test_other_files_beside_pass(folder, run_gate, beside):
    place = release(folder, write_sharded)
    (place / beside).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    assert run_gate(place)[0] == 0


SHADOWED = [
    (INDEX, SHARD, "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin"),
    ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "model.safetensors"),
    ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors",
     "model.fp16.safetensors"),
    ("diffusion_pytorch_model.safetensors.index.json", "a-00001-of-00001.safetensors",
     "diffusion_pytorch_model.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize("given", ["folder", "index"])
@pytest.mark.parametrize(("index", "shard", "preferred"), SHADOWED)
def test_an_index_that_libraries_do_not_look_for(folder, run_gate, given, index, shard, preferred):
    place = release(folder, lambda place: write_sharded(place, index, shard))
    path = place if given == "folder" else place / index
    assert run_gate(path)[0] == 0
    if preferred.endswith(".bin"):
        torch.save({"w": torch.zeros(4)}, place / preferred)
    else:
        save_file({"w": torch.zeros(4)}, place / preferred, {"format": "pt"})
        assert load_file(place / preferred)["w"].sum() == 0, "not the ones of the shards"
    code, output = run_gate(path)
    if given == "folder" and preferred == "model.safetensors" and index.startswith("pytorch"):
        # What transformers loads is judged, and the shards of the other format are named.
        named = f"{shard!r}: from_pretrained() loads `model.safetensors` first"
        assert (code, named in " ".join(output.split())) == (0, True), output
        return
    if preferred.startswith("diffusion"):
        # diffusers looks for the index first: what it loads is judged, the other file is named.
        assert (code, repr(preferred) in output) == (0, True), output
        return
    assert (code, "CK317" in output) == (1, True), output


HOSTILE_INDEXES = {
    "two weight_maps": b'{"weight_map":{"w":"%s"},"weight_map":{"w":"evil.bin"}}',
    "a key twice": b'{"weight_map":{"w":"%s","w":"evil.bin"}}',
    "a key twice, once escaped": b'{"weight_map":{"w":"%s","\\u0077":"evil.bin"}}',
    "a byte order mark": b'\xef\xbb\xbf{"weight_map":{"w":"%s"}}',
    "a folder up": b'{"weight_map":{"w":"../%s"}}',
    "a folder down": b'{"weight_map":{"w":"x/../%s"}}',
    "an absolute name": b'{"weight_map":{"w":"/%s"}}',
    "text behind it": b'{"weight_map":{"w":"%s"}}{}',
    "a comment": b'{"weight_map":{"w":"%s"}/**/}',
    "a payload for a shard": b'{"weight_map":{"w":"%s","v":"evil.bin"}}',
}


@pytest.mark.parametrize("kind", HOSTILE_INDEXES)
def test_an_index_of_two_readings(folder, run_gate, ask_torch, kind):
    place = release(folder, write_sharded)
    assert run_gate(place)[0] == 0
    (place / "evil.bin").write_bytes(PAYLOAD)
    (place / INDEX).write_bytes(HOSTILE_INDEXES[kind] % SHARD.encode())
    assert ask_torch(place / "evil.bin", "everything")["ran"]
    assert run_gate(place)[0] in {1, 2}
    assert run_gate(place / INDEX)[0] in {1, 2}


POLICY = """
[[models]]
path = "release/*.pth"
module = "hostile_net:Net"
[[paths]]
path = "release/*.pth"
require = { safetensors = true }
"""
NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2, 2))
"""


@pytest.fixture
def project(folder):
    (folder / "release" / "inner").mkdir(parents=True)
    (folder / "scratch").mkdir()
    (folder / "hostile_net.py").write_text(NET)
    (folder / "ckptool.toml").write_text(POLICY)
    torch.save({"other": torch.zeros(3)}, folder / "release" / "x.pth")
    torch.save({"other": torch.zeros(3)}, folder / "release" / "inner" / "y.pth")
    yield folder
    sys.modules.pop("hostile_net", None)


OTHER_NAMES = [
    "release//x.pth", "release/../release/./x.pth", "/proc/self/cwd/release/x.pth",
    "file://{folder}/release/x.pth", "local://{folder}/release/x.pth", "LOCAL://release/x.pth",
    "{folder}/release/x.pth", "release/inner", "release/inner/", "release/inner/../x.pth",
    "scratch/link/x.pth", "scratch/inner", "/dev/fd/{descriptor}", "release/x.pth/",
]  # fmt: skip


@pytest.mark.parametrize("given", OTHER_NAMES)
def test_another_name_of_the_file_is_judged_alike(project, run_gate, given):
    (project / "scratch" / "link").symlink_to("../release")
    (project / "scratch" / "inner").symlink_to("../release/inner")
    assert run_gate("release/x.pth")[0] == 1
    descriptor = os.open("release/x.pth", os.O_RDONLY)
    code, output = run_gate(given.format(folder=project, descriptor=descriptor))
    os.close(descriptor)
    assert (code, "CK854" in output, "hostile_net:Net" in output) == (1, True, True), output


def test_a_loop_of_links_beside_a_file_hides_nothing(project, run_gate):
    loop = project / "release" / "inner" / "loop.pth"
    loop.symlink_to("loop.pth")
    code, output = run_gate(project / "release" / "inner")
    assert (code in {1, 2}, "passed" in output.splitlines()[0]) == (True, False), output


def test_an_index_is_judged_as_its_shards_would_be(project, run_gate):
    (project / "ckptool.toml").write_text(
        '[[paths]]\npath = "release/inner/*.bin"\nrequire = { safetensors = true }\n'
    )
    place = project / "release" / "inner"
    (place / "y.pth").unlink()
    index = "pytorch_model.bin.index.json"
    write_sharded(place, index, "pytorch_model-00001-of-00001.bin")
    for given in (place, place / index):
        code, output = run_gate(given)
        assert (code, "CK854" in output) == (1, True), output


def test_a_folder_of_files_with_two_modules_does_not_pass(project, run_gate):
    torch.save({"w": torch.zeros(2, 2)}, project / "release" / "inner" / "z.bin")
    more = '[[models]]\npath = "release/*.bin"\nmodule = "torch.nn:Identity"\n'
    (project / "ckptool.toml").write_text(POLICY + more)
    assert run_gate("release/inner")[0] != 0


def test_names_that_no_pattern_has_are_the_defaults(project, run_gate):
    torch.save({"w": torch.zeros(2, 2)}, project / "scratch" / "x.pth")
    assert run_gate("scratch/x.pth")[0] == 0
    assert run_gate("scratch")[0] == 0


def test_words_of_a_name_are_no_payload(folder, run_gate):
    place = release(folder, write_sharded)
    (place / "notes.pkl").write_bytes(pickled(mapping(a=text("mailbox.Maildir"))))
    assert run_gate(place)[0] == 0


OTHER_NAMES_BESIDE = [
    "weights", "model.joblib", "weights.dat", "state.p", "m.pt.bak", "m.ptl", "m.zip", "x.distcp",
    "pytorch_model.bin.1", ".pt", "notes.txt",
]  # fmt: skip


@pytest.mark.parametrize("beside", OTHER_NAMES_BESIDE)
@pytest.mark.parametrize("write", WRITERS)
def test_a_payload_under_a_name_that_no_checkpoint_has(folder, run_gate, ask_torch, write, beside):
    """Files beside a checkpoint were chosen by their suffix: a pickle was not read under others."""
    place = release(folder, write)
    (place / beside).write_bytes(pickled(mapping(a=text("mailbox.Maildir"))))
    assert run_gate(place)[0] == 0
    (place / beside).write_bytes(PAYLOAD)
    assert ask_torch(place / beside, "everything")["ran"]
    code, output = run_gate(place)
    assert (code, beside in output) == (1, True), output


@pytest.mark.parametrize("beside", ["evil.pkl", "evil.tar", "evil.joblib", "weights"])
def test_a_payload_in_a_folder_of_several_checkpoints(folder, run_gate, ask_torch, beside):
    """A folder of several files was judged as those with a checkpoint's suffix, and no other."""
    place = release(folder, lambda place: place)
    for name_ in ("a.pth", "b.pth"):
        torch.save({"w": torch.ones(4)}, place / name_)
    (place / beside).write_bytes(pickled(mapping(a=text("words"))))
    assert run_gate(place)[0] == 0
    (place / beside).write_bytes(PAYLOAD)
    assert ask_torch(place / beside, "everything")["ran"]
    code, output = run_gate(place)
    assert (code, beside in output) == (1, True), output
    assert run_gate(place / "a.pth")[0] == 0, "what was named is judged alone"


def test_what_would_have_to_be_unpacked_beside_a_checkpoint_is_listed(folder, run_gate):
    place = release(folder, write_single)
    (place / "vocabulary.txt").write_text("(\ncat\ndog\n")
    os.mkfifo(place / "pipe")
    assert "in the same folder" not in run_gate(place)[1]
    (place / "m.pkl.gz").write_bytes(gzip.compress(PAYLOAD))
    code, output = run_gate(place)
    assert (code, "'m.pkl.gz', in the same folder" in output) == (0, True), output


def test_the_metadata_file_stands_for_its_folder(folder, run_gate):
    """`gate dcp/.metadata` was judged without what stands beside it."""
    place = release(folder, write_distributed)
    assert run_gate(place / ".metadata")[0] == 0
    (place / "evil.bin").write_bytes(PAYLOAD)
    code, output = run_gate(place / ".metadata")
    assert (code, "evil.bin" in output) == (1, True), output
