"""Pickles that act by names of installed packages which no list of bad names has.

Each payload is run by torch.load(weights_only=False) in a scratch folder, where its marker shows
that it acts; torch.load(weights_only=True) refuses it; the gate fails it. Its twin holds the same
words as text, and passes.
"""

import pytest
from hostile.pickles import (
    MARKER,
    archive,
    call,
    group,
    mapping,
    name,
    number,
    pickled,
    tensor,
    text,
)

pytestmark = pytest.mark.process

TRUE = b"\x88"
FILE = text(MARKER)
SOURCE = text(f"open({MARKER!r}, 'w')")
SUBPROCESS = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"


def listed(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


CALLS = {
    ("mailbox", "Maildir"): (FILE,),
    ("mailbox", "MH"): (FILE,),
    ("logging", "FileHandler"): (FILE,),
    ("logging.handlers", "WatchedFileHandler"): (FILE,),
    ("dbm.dumb", "open"): (FILE, text("n")),
    ("sqlite3.dbapi2", "connect"): (FILE,),
    ("wave", "open"): (FILE, text("wb")),
    ("zipfile", "PyZipFile"): (FILE, text("w")),
    ("tarfile", "TarFile"): (FILE, text("w")),
    ("lzma", "LZMAFile"): (FILE, text("w")),
    ("tempfile", "mkdtemp"): (text(""), FILE, text(".")),
    ("tokenize", "_builtin_open"): (FILE, text("w")),
    ("numpy", "memmap"): (FILE, text("uint8"), text("w+"), number(0), group(number(4))),
    ("numpy", "savetxt"): (FILE, listed(number(1))),
    ("numpy.lib.format", "open_memmap"): (FILE, text("w+"), text("uint8"), group(number(4))),
    ("numpy.testing", "runstring"): (SOURCE, b"}"),
    ("torch", "from_file"): (FILE, TRUE, number(4)),
    ("torch.serialization", "_open_zipfile_writer_file"): (FILE,),
    ("torch.serialization", "_open_file_like"): (FILE, text("w")),
    ("torch.fx.graph_module", "_exec_with_source"): (SOURCE, b"}"),
    ("torch.utils.collect_env", "run"): (text(f"mkdir {MARKER}"),),
    ("torch._inductor.codecache", "write_atomic"): (FILE, text("x")),
    ("torch.package", "PackageExporter"): (FILE,),
    (SUBPROCESS, "Popen"): (listed(text("touch"), FILE),),
    ("sympy.core.sympify", "sympify"): (text(f"__import__('os').mkdir({MARKER!r})"),),
    ("fsspec.implementations.local", "LocalFileOpener"): (FILE, text("wb")),
    ("click._compat", "open_stream"): (FILE, text("w")),
    ("_pyio", "FileIO"): (FILE, text("w")),
}


def import_by_stack(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def instantiate(module: str, attribute: str, *arguments: bytes) -> bytes:
    return b"(" + b"".join(arguments) + b"i" + name(module, attribute)[1:]


@pytest.mark.parametrize("called", CALLS, ids=".".join)
def test_what_acts_fails_the_gate(folder, run_gate, ask_torch, called):
    payload = call(name(*called), *CALLS[called])
    path = archive(folder / "x.pth", pickled(mapping(w=tensor(), x=payload)))
    assert ask_torch(path, "everything")["ran"]
    refused = ask_torch(path, "weights only")
    assert (refused["loads"], refused["ran"]) == (False, False)
    code, output = run_gate(path)
    assert code == 1
    assert ".".join(called) in "".join(line.strip() for line in output.splitlines())


@pytest.mark.parametrize("called", CALLS, ids=".".join)
def test_its_twin_of_text_passes(folder, run_gate, ask_torch, called):
    words = mapping(module=text(called[0]), name=text(called[1]), held=group(*CALLS[called]))
    path = archive(folder / "x.pth", pickled(mapping(w=tensor(), x=words)))
    assert ask_torch(path, "weights only")["loads"]
    assert run_gate(path)[0] == 0


FORMS = {
    "STACK_GLOBAL": (call(import_by_stack("mailbox", "Maildir"), FILE), 4),
    "INST": (instantiate("mailbox", "Maildir", FILE), 2),
    "OBJ": (b"(" + name("mailbox", "Maildir") + FILE + b"o", 2),
    "NEWOBJ, a name from the memo": (
        name("lzma", "LZMAFile") + b"q\x05" + b"0" + b"h\x05" + group(FILE, text("w")) + b"R", 2,
    ),
    "in the key of a dict": (b"}" + call(name("mailbox", "Maildir"), FILE) + b"K\x01s", 2),
    "in the hooks of a tensor": (
        call(
            name("torch._utils", "_rebuild_parameter"), tensor(), TRUE,
            call(name("mailbox", "Maildir"), FILE),
        ), 2,
    ),
    "thrown away": (call(name("mailbox", "Maildir"), FILE) + b"0K\x01", 2),
    "in the arguments of a safe call": (
        call(name("collections", "OrderedDict"), listed(group(
            text("a"), call(name("mailbox", "Maildir"), FILE)))), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_call_is_seen(folder, run_gate, ask_torch, form):
    payload, protocol = FORMS[form]
    path = archive(folder / "x.pth", pickled(mapping(w=tensor(), x=payload), protocol))
    assert ask_torch(path, "everything")["ran"]
    assert not ask_torch(path, "weights only")["ran"]
    assert run_gate(path)[0] in {1, 2}
