"""A payload beside or behind the data: each is found, or the file is refused."""

import io
import json
import pickle
import struct
import tarfile
import zipfile

import pytest
import torch
from containers import safetensors_bytes
from files import save_dcp
from hostile.pickles import MARKER, archive, blob, call, mapping, name, pickled, tensor, text
from safetensors.torch import save_file
from torch import nn

PAYLOAD = call(name("os", "mkdir"), text(MARKER))
UNKNOWN = call(name("torch.utils.tensorboard", "SummaryWriter"), text(MARKER))
CONTENT = {"w": torch.ones(4)}


def saved(content=CONTENT, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("archive/data.pkl", pickled(PAYLOAD))
    return buffer.getvalue()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as written:
        for key in ("storages", "tensors", "pickle"):
            data = pickled(PAYLOAD)
            member = tarfile.TarInfo(key)
            member.size = len(data)
            written.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def tar_header_over(data: bytes) -> bytes:
    """Return `data` with a checksum in its first 512 bytes, so that tarfile takes it for a tar."""
    block = bytearray(data[:512].ljust(512, b" "))
    block[100:156] = b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" * 2 + b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def a_zip_in_the_last_tensor_of_safetensors() -> bytes:
    data = zip_bytes()
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    return safetensors_bytes({"w": entry}, data)


def a_zip_68000_bytes_before_the_end_of_safetensors() -> bytes:
    data = zip_bytes() + bytes(68_000)
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    return safetensors_bytes({"w": entry}, data)


def a_tar_that_is_safetensors() -> bytes:
    """The first 512 bytes are a tar header: the JSON has spaces where numbers are expected."""
    data = tar_bytes()
    start = b'{"__metadata__":{"a":"' + b"a" * 70
    numbers = b"0000644 " + b"0000000 " * 2 + b"00000000000 " * 2 + b"CHECKSUM"
    header = start.ljust(92, b"a") + numbers
    end = b'"},"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(data), len(data))
    header = header.ljust(504 - len(end), b" ") + end
    block = bytearray(struct.pack("<Q", len(header)) + header)
    assert len(block) == 512
    block[148:156] = b" " * 8
    block[148:156] = b"%07o " % sum(block)
    return bytes(block) + data


def a_pickle_that_goes_on_behind_a_header() -> bytes:
    """The length of the header is an opcode, "X"; strings of 126 bytes lead on to the data."""
    steps, first = 0x10, 5 + 0x10
    header_nbytes = 0x58 | steps << 8
    start = 8 + header_nbytes
    payload = PAYLOAD + b"."
    header = bytearray(b'{"__metadata__":{"p":"'.ljust(header_nbytes, b"p"))
    links = list(range(first, start, 128))
    for link in links:
        header[link - 8 : link - 6] = b"U~"
    landing = links[-1] + 128
    data = bytes(landing - start) + payload
    entry = b'"},"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(data), len(data))
    end = links[-1] - 6
    assert header_nbytes - end >= len(entry), "no room behind the last link"
    header[end:] = entry.ljust(header_nbytes - end)
    return struct.pack("<Q", header_nbytes) + bytes(header) + data


def a_pickle_with_a_mebibyte_before_its_payload() -> bytes:
    return pickled(b"](" + blob(bytes(1 << 20)) + PAYLOAD + b"e", protocol=3)


def a_zip_behind_a_legacy_file() -> bytes:
    return saved(_use_new_zipfile_serialization=False) + zip_bytes()


def a_zip_in_the_last_storage_of_a_legacy_file() -> bytes:
    data = torch.frombuffer(bytearray(zip_bytes()), dtype=torch.uint8)
    return saved({"w": data}, _use_new_zipfile_serialization=False)


def a_tar_behind_a_legacy_file() -> bytes:
    return saved(_use_new_zipfile_serialization=False) + tar_bytes()


def a_tar_header_that_is_a_pickle() -> bytes:
    """A V7 tar header without `ustar`: tarfile goes by the checksum, torch.load by tarfile."""
    return tar_header_over(b"\x80\x02X\xf0\0\0\0") + pickled(PAYLOAD)


def a_second_pickle_behind_the_first() -> bytes:
    return pickle.dumps([1], 2) + pickled(PAYLOAD)


def a_pickle_in_bytes() -> bytes:
    return saved({**CONTENT, "teacher": pickled(PAYLOAD)})


def a_pickle_of_protocol_0_in_bytes() -> bytes:
    return saved({**CONTENT, "teacher": b"cos\nmkdir\n(V" + MARKER.encode() + b"\ntR."})


def a_zip_in_bytes() -> bytes:
    return saved({**CONTENT, "teacher": zip_bytes()})


def an_unknown_name_in_bytes() -> bytes:
    return saved({**CONTENT, "teacher": pickled(UNKNOWN)})


def a_pickle_in_bytes_in_bytes() -> bytes:
    content = pickled(PAYLOAD)
    for _ in range(9):
        content = pickled(blob(content), protocol=3)
    return saved({**CONTENT, "teacher": content})


def a_pickle_behind_a_hundred_others() -> bytes:
    content = bytearray(pickled(b"N") * 100 + pickled(PAYLOAD))
    return saved({"layer._extra_state": torch.frombuffer(content, dtype=torch.uint8)})


def a_pickle_in_extra_state() -> bytes:
    content = torch.frombuffer(bytearray(pickled(PAYLOAD)), dtype=torch.uint8)
    return saved({**CONTENT, "layer._extra_state": content})


def a_pickle_of_protocol_0_in_extra_state() -> bytes:
    content = bytearray(b"cos\nmkdir\n(V" + MARKER.encode() + b"\ntR.")
    return saved({"layer._extra_state": torch.frombuffer(content, dtype=torch.uint8)})


def a_zip_in_extra_state() -> bytes:
    content = torch.frombuffer(bytearray(zip_bytes()), dtype=torch.uint8)
    return saved({**CONTENT, "layer._extra_state": content})


def a_pickle_in_a_tensor_of_bytes() -> bytes:
    content = torch.frombuffer(bytearray(pickled(PAYLOAD)), dtype=torch.uint8)
    return saved({**CONTENT, "config": content})


def a_pickle_in_extra_state_of_safetensors() -> bytes:
    data = pickled(PAYLOAD)
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    return safetensors_bytes({"layer._extra_state": entry}, data)


MADE = [value for key, value in list(globals().items()) if key.startswith(("a_", "an_"))]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_payload_is_found_or_the_file_refused(folder, run_gate, make):
    path = folder / "model.bin"
    path.write_bytes(make())
    code, output = run_gate(path)
    assert code in {1, 2}, output


RECORDS = {
    "a pickle behind 1 MiB": pickled(b"](" + blob(bytes(2 << 20)) + PAYLOAD + b"e", protocol=3),
    "an unknown name": pickled(UNKNOWN),
    "a zip": zip_bytes(),
    "a tar": tar_bytes(),
    "a program": b"\x7fELF" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
}


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_that_nothing_refers_to(folder, run_gate, record):
    path = archive(folder / "x.pth", pickled(mapping(w=tensor())), extra=RECORDS[record])
    code, output = run_gate(path)
    assert code == 1, output


def test_text_beside_the_records_passes(folder, run_gate):
    path = archive(folder / "x.pth", pickled(mapping(w=tensor())), notes=b"read me\n" * 9)
    assert run_gate(path)[0] == 0


class WritesAtLoad(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]
        torch.save(state[0], "HOSTILE_MARKER")

    def forward(self, x):
        return x * self.weight


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_that_writes_a_file_at_load(folder, run_gate):
    torch.jit.script(nn.Sequential(WritesAtLoad())).save("x.pt")
    code, output = run_gate("x.pt")
    assert (code, "__setstate__" in output, "torch.save" in output) == (1, True, True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), path)
    with zipfile.ZipFile(path) as read:
        records = {key: read.read(key) for key in read.namelist()}
    if not any(key.endswith("model_weights_config.json") for key in records):
        pytest.skip("this torch exports the weights as one pickle")
    return records


def export_with(path, records: dict[str, bytes], **changed: bytes):
    with zipfile.ZipFile(path, "w") as written:
        for key, data in {**records, **changed}.items():
            written.writestr(zipfile.ZipInfo(key), data)
    return path


def replace_in_program(records: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    key = next(key for key in records if key.endswith("models/model.json"))
    program = records[key].decode()
    assert old in program
    return {**records, key: program.replace(old, new).encode()}


def test_an_exported_program_passes(folder, run_gate, exported):
    assert run_gate(export_with(folder / "x.pt2", exported))[0] == 0


@pytest.mark.parametrize(
    "record",
    [
        "data/sample_inputs/model.pt",
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/aotinductor/model/cube.so",
    ],
)
@pytest.mark.parametrize("content", [pickled(PAYLOAD), pickled(UNKNOWN), b"\x7fELF" + bytes(99)])
def test_a_record_of_an_exported_program(folder, run_gate, exported, record, content):
    root = next(iter(exported)).partition("/")[0]
    path = export_with(folder / "x.pt2", exported, **{f"{root}/{record}": content})
    code, output = run_gate(path)
    assert code in {1, 2}, output


def test_pickled_weights_of_an_exported_program(folder, run_gate, exported):
    key = next(key for key in exported if key.endswith("model_weights_config.json"))
    config = json.loads(exported[key])
    entry = config["config"]["weight"]
    entry["use_pickle"] = True
    place = f"{key.partition('/')[0]}/data/weights/{entry['path_name']}"
    changed = {key: json.dumps(config).encode(), place: pickled(PAYLOAD)}
    code, output = run_gate(export_with(folder / "x.pt2", exported, **changed))
    assert code in {1, 2}, output


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').mkdir('HOSTILE_MARKER')",
        "().__class__.__bases__[0].__subclasses__()",
        "[x for x in ().__class__.__mro__]",
        "(lambda: exit())()",
        "open('HOSTILE_MARKER', 'w')",
        "s0.func.__globals__['os']",
    ],
)
def test_an_expression_that_sympy_would_evaluate(folder, run_gate, exported, expression):
    size = '{"as_int":2}' if '{"as_int":2}' in str(exported) else '{"as_int": 2}'
    hostile = json.dumps({"as_expr": {"expr_str": expression, "hint": None}})
    path = export_with(folder / "x.pt2", replace_in_program(exported, size, hostile))
    assert run_gate(path)[0] == 2


def test_an_operator_that_is_none(folder, run_gate, exported):
    target = "torch.ops.aten.linear.default"
    path = export_with(
        folder / "x.pt2", replace_in_program(exported, target, "torch.serialization.os.system")
    )
    assert run_gate(path)[0] == 1


def write_dcp(folder, content: bytes):
    """Write a distributed checkpoint and put `content` in the place of its plain object."""
    save_dcp({"w": torch.ones(4), "epoch": {"n": [1]}}, folder / "dcp")
    metadata = pickle.loads((folder / "dcp" / ".metadata").read_bytes())
    index = next(key for key in metadata.storage_data if key.fqn.startswith("epoch"))
    place = metadata.storage_data[index]
    data = folder / "dcp" / place.relative_path
    written = data.read_bytes()
    place.offset, place.length = len(written), len(content)
    data.write_bytes(written + content)
    (folder / "dcp" / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder / "dcp"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "content", [pickled(PAYLOAD), pickled(UNKNOWN), b"cos\nmkdir\n(Vx\ntR.", tar_bytes()]
)
def test_a_plain_object_of_a_distributed_checkpoint(folder, run_gate, content):
    code, output = run_gate(write_dcp(folder, content))
    assert code in {1, 2}, output


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_distributed_checkpoint_passes(folder, run_gate):
    code, output = run_gate(write_dcp(folder, saved([1])))
    assert code == 0, output


def test_other_checkpoints_beside_an_index_are_searched(folder, run_gate):
    save_file({"w": torch.ones(4)}, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").write_bytes(pickled(PAYLOAD))
    for place in (folder, folder / "model.safetensors.index.json"):
        code, output = run_gate(place)
        assert (code, "pytorch_model.bin" in output) == (1, True)
