"""The inert unpickler: every opcode, every rule, and what is recorded of the names in a stream."""

import argparse
import collections
import datetime as dt
import decimal
import fractions
import io
import math
import os
import pathlib
import pickle
import pickletools
import types

import pytest
from files import needs_torch
from hypothesis import example, given
from hypothesis import strategies as st

from ckptool.errors import CorruptCheckpointError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.pickle.nodes import (
    GlobalName,
    MappingNode,
    PersistentReference,
    SetNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.opcodes import HANDLERS
from ckptool.formats.pickle.reader import (
    parse_pickle,
    parse_whole_pickle,
    scan_globals,
    select_dangerous,
)
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS, classify_name
from ckptool.model import Safety

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
KEYS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.text(), st.binary())
ATOMS = st.one_of(KEYS, st.integers(), st.floats())
PLAIN = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(KEYS, inner),
        st.dictionaries(KEYS, inner).map(collections.OrderedDict),
        st.sets(KEYS),
        st.frozensets(KEYS),
    ),
    max_leaves=20,
)


def read(data: bytes, limits: Limits = DEFAULT_LIMITS):
    return parse_whole_pickle(data, limits)


def named(data: bytes) -> list[str]:
    return [name.qualified_name for name in read(data).globals]


def plain(node: object) -> object:
    """Return a node as the value that it stands for."""
    if type(node) is SetNode:
        return {plain(item) for item in node.items}
    if isinstance(node, dict):
        made = {plain(key): plain(value) for key, value in node.items()}
        return collections.OrderedDict(made) if type(node) is MappingNode else made
    if type(node) in {list, tuple}:
        return type(node)(plain(item) for item in node)
    return node


def same(one: object, other: object) -> bool:
    return repr(one) == repr(other) if isinstance(one, float) else one == other


@given(PLAIN, st.sampled_from(PROTOCOLS))
@example(b"\x82\x00", 0)  # the opcode EXT1, in bytes that protocol 0 writes as text
def test_plain_data_come_back(value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert found.error == ""
    if not contains_nan(value):
        assert plain(found.root) == value
    assert all(
        classify_name(name.module, name.name) is not Safety.DANGEROUS for name in found.globals
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("opcode", [b"\x82\x07", b"\x83\x07\0", b"\x84\x07\0\0\0"])
def test_extension_codes_in_byte_strings(opcode, protocol):
    """A digest may begin with the opcode; what unpickles, or calls, is a pickle."""
    name = "copyreg.<extension 7>"
    assert name not in named(pickle.dumps(opcode + b"\xff" * 30, protocol))
    assert name in named(pickle.dumps(opcode + b"0N" * 8 + b".", protocol))
    assert name in named(pickle.dumps(opcode + b")R" + b"\xff" * 30, protocol))


def contains_nan(value: object) -> bool:
    return "nan" in repr(value)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_floats_come_back_to_the_bit(value, protocol):
    assert repr(read(pickle.dumps(value, protocol)).root) == repr(value)


@given(st.integers(min_value=-(2**600), max_value=2**600), st.sampled_from(PROTOCOLS))
def test_large_numbers_come_back(value, protocol):
    assert read(pickle.dumps(value, protocol)).root == value


def test_every_opcode_is_known():
    """The five that the loop handles itself are seen by the laws above."""
    inline = {"LONG_BINPUT", "BINGET", "BINUNICODE", "TUPLE", "MARK"}
    for opcode in pickletools.opcodes:
        known = HANDLERS[ord(opcode.code)].__name__ != "_reject_opcode"
        assert known is (opcode.name not in inline), opcode.name


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(lr=0.1, layers=[1, 2]),
        dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        decimal.Decimal("1.5"),
        fractions.Fraction(1, 3),
        pathlib.PurePosixPath("a/b"),
        types.SimpleNamespace(a=1),
        collections.deque([1, 2], maxlen=3),
        collections.Counter("aab"),
        collections.defaultdict(list, a=[1]),
        complex(1, 2),
        slice(1, 2, 3),
        range(3),
        bytearray(b"abc" * 100),
        Exception("x"),
        ValueError(1),
    ],
    ids=repr,
)
def test_objects_are_described_and_not_dangerous(value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert found.error == ""
    assert select_dangerous(found.globals) == []
    names = [n for n in found.globals if n.module not in {"copyreg", "_codecs"}]
    assert names or isinstance(value, bytearray)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bytearray_is_its_bytes(protocol):
    assert read(pickle.dumps(bytearray(b"\0\xff" * 50), protocol)).root == b"\0\xff" * 50


class Loose:
    """An object with state; its class is never looked for."""

    def __init__(self):
        self.a = 1
        self.b = [self]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_keeps_its_class_and_its_state(protocol):
    root = read(pickle.dumps(Loose(), protocol)).root
    assert type(root) is UnresolvedObject
    assert root.qualified_name == f"{__name__}.Loose"
    assert root.state["a"] == 1
    assert root.state["b"][0] is root


class Listed(list):
    pass


class Mapped(dict):
    pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_subclasses_of_containers_keep_what_they_hold(protocol):
    listed = read(pickle.dumps(Listed([1, 2]), protocol)).root
    mapped = read(pickle.dumps(Mapped(a=1, b=2), protocol)).root
    assert (listed.qualified_name, listed.items) == (f"{__name__}.Listed", [1, 2])
    assert (mapped.qualified_name, mapped.pairs) == (f"{__name__}.Mapped", {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("stream", "value"),
    [
        (b"N.", None),
        (b"I01\n.", True),
        (b"I00\n.", False),
        (b"I-5\n.", -5),
        (b"L12L\n.", 12),
        (b"F1.5\n.", 1.5),
        (b"S'a\\n'\n.", "a\n"),
        (b"T\x02\0\0\0ab.", "ab"),
        (b"U\x01\xe9.", "\xe9"),
        (b"Va\\u00e9\n.", "a\xe9"),
        (b"J\xff\xff\xff\xff.", -1),
        (b"M\x01\x02.", 513),
        (b"\x8b\x02\0\0\0\xff\x7f.", 32767),
        (b"C\x02ab.", b"ab"),
        (b"B\x02\0\0\0ab.", b"ab"),
        (b"\x8e\x02\0\0\0\0\0\0\0ab.", b"ab"),
        (b"\x96\x02\0\0\0\0\0\0\0ab\x98.", b"ab"),
        (b"\x8d\x02\0\0\0\0\0\0\0ab.", "ab"),
        (b"X\x03\0\0\0\xed\xa0\x80.", "\ud800"),
        (b"(K\x01K\x02l.", [1, 2]),
        (b"(K\x01K\x02d.", {1: 2}),
        (b"(K\x011N.", None),
        (b"K\x01(0.", 1),
        (b"K\x01K\x020.", 1),
        (b"K\x012\x86.", (1, 1)),
        (b"K\x01K\x02K\x03\x87.", (1, 2, 3)),
        (b"K\x01p300\n0g300\n.", 1),
        (b"K\x01\x94K\x02\x94\x86h\x00\x86.", ((1, 2), 1)),
        (b"]K\x01a(K\x02K\x03e.", [1, 2, 3]),
        (b"}K\x01K\x02s(K\x03K\x04u.", {1: 2, 3: 4}),
    ],
)
def test_opcodes(stream, value):
    found = read(stream)
    assert (found.error, found.root) == ("", value)


def test_persistent_ids_are_left_to_the_container():
    found = read(b"K\x07QPabc\n\x86.")
    assert [node.persistent_id for node in found.persistent_references] == [7, "abc"]
    assert all(type(node) is PersistentReference for node in found.root)


def test_the_class_of_an_old_module_is_itself():
    """Torch before 1.6 pickled ("module", class, file, source) in its place."""
    root = read(b"(X\x06\0\0\0modulecnet\nNet\nNNtQ)\x81}X\x01\0\0\0aK\x01sb.").root
    assert (root.qualified_name, root.state) == ("net.Net", {"a": 1})


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b"", "needs something that is not"),
        (b"N", "ends before its STOP"),
        (b"0.", "needs something that is not"),
        (b".", "needs something that is not"),
        (b"t.", "needs something that is not"),
        (b"h\x07.", "needs something that is not"),
        (b"\xff.", "0xff is not an opcode"),
        (b"\x80\x06N.", "protocol 6"),
        (b"N.N.", "2 bytes follow"),
        (b"\x8e\0\0\0\0\0\0\0\x40.", "claims 4611686018427387904 bytes but 1 are left"),
        (b"\x96\0\0\0\x80\x01\0\0\0.", "claims 6442450944 bytes"),
        (b"\x8d\0\0\0\x80\x01\0\0\0.", "claims 6442450944 bytes"),
        (b"T\xff\xff\xff\xffab.", "claims -1 bytes"),
        (b"X\xff\0\0\0ab.", "ends before its STOP"),
        (b"X\x01\0\0\0\xff.", "a string does not match its opcode"),
        (b"L" + b"9" * 5000 + b"\n.", "5000 digits"),
        (b"\x8b\0\0\0\x10.", "a number of 268435456 bytes"),
        (b"Iabc\n.", "needs something that is not"),
        (b"I5", "a line has no end"),
        (b"Sabc\n.", "without its quotes"),
        (b"Np4294967296\n.", "beyond 32 bits"),
        (b"}]Ns.", "a list is used as a key"),
        (b"}}Ns.", "a dict is used as a key"),
        (b"}](\x85Ns.", "needs something that is not"),
        (b"}]\x85Ns.", "a list is used as a key"),
        (b"}\x8a\x09\0\0\0\0\0\0\0\0\x01Ns.", "more than 64 bits"),
        (b"}(Nu.", "a key has no value"),
        (b"NNa.", "appended to a NoneType"),
        (b"NNNs.", "set in a NoneType"),
        (b"N(N\x90.", "appended to a NoneType"),
        (b"NNR.", "a call with NoneType"),
        (b"N)R.", "a NoneType is called"),
        (b"K\x01)\x81.", "a int is called"),
        (b"N}b.", "a state to a NoneType"),
        (b"]}b.", "a state to a list"),
        (b"cfoo\nBar\n}b.", "a state to a Global"),
        (b"cfoo\nBar\n)R}b}b.", "to an object that has one"),
        (b"\x97.", "needs a buffer"),
        (b"N\x98.", "marked as a buffer"),
        (b"ccollections\nOrderedDict\nN\x85R.", "built from a NoneType"),
        (b"ccollections\nOrderedDict\n(](NNNtatR.", "something other than pairs"),
        (b"cbuiltins\nset\nN\x85R.", "a set is built from a NoneType"),
        (b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x02\x85R.", "would allocate 8589934592 bytes"),
        (b"cbuiltins\nbytearray\n]\x85R.", "a bytearray is built from a list"),
        (b"c_codecs\nencode\nN\x85R.", "something other than Latin-1"),
        (b"ctorch\nSize\nN\x85R.", "a torch.Size is built from a NoneType"),
        (b"ccopyreg\n_reconstructor\n)R.", "without a class"),
        (b"ccopyreg\n__newobj__\n)R.", "without a class"),
        (b"ccopyreg\n__newobj_ex__\n)R.", "without a class"),
        (b"(o.", "needs something that is not"),
    ],
)
def test_broken_streams(stream, fault):
    found = read(stream)
    assert fault in found.error


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        # Two bytes of frame, and an opcode that needs five.
        (b"\x80\x04\x95\2\0\0\0\0\0\0\0K\x01X\x01\0\0\0a\x86.", ""),
        (b"\x80\x04\x95\1\0\0\0\0\0\0\0K\x01.", "an opcode crosses the end of its frame"),
        (b"\x80\x04\x95\2\0\0\0\0\0\0\0B\x01\0\0\0a.", "ends before its STOP"),
        (b"\x80\x04\x95\x0c\0\0\0\0\0\0\0\x95\1\0\0\0\0\0\0\0N..", "inside another frame"),
        (b"\x80\x04\x95\xff\0\0\0\0\0\0\0N.", "a frame claims 255 bytes but 2 are left"),
        (b"\x80\x04\x95\3\0\0\0\0\0\0\0N.N", "goes on after the end"),
    ],
)
def test_frames(stream, fault):
    found = read(stream)
    assert bool(found.error) is bool(fault)
    if fault != "ends before its STOP":
        assert fault in found.error


def test_a_broken_frame_does_not_hide_an_import():
    straddling = b"\x80\x05N(\x95\2\0\0\0\0\0\0\0B\x07\x01\0\0\0\0cposix\nsystem\nX\0\0\0\0\x85R."
    found = read(straddling)
    assert found.error
    assert [name.qualified_name for name in select_dangerous(found.globals)] == ["posix.system"]


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"cposix\nsystem\n.", "posix.system"),
        (b"cposix\nsystem\n0N.", "posix.system"),
        (b"c__builtin__\neval\n.", "builtins.eval"),
        (b"ccommands\ngetoutput\n.", "subprocess.getoutput"),
        (b"(iposix\nsystem\n.", "posix.system"),
        (b"(cposix\nsystem\nU\x01ao.", "posix.system"),
        (b"X\x05\0\0\0posixX\x06\0\0\0system\x93.", "posix.system"),
        (b"X\x05\0\0\0posix\x940X\x06\0\0\0system\x940h\x00h\x01\x93.", "posix.system"),
        (b"X\x05\0\0\0posix20X\x06\0\0\0system2\x930N.", "system.system"),
        (b"cpathlib\nos.system\n.", "pathlib.os.system"),
        (b"\x82\x07.", "copyreg.<extension 7>"),
        (b"\x83\x07\x01.", "copyreg.<extension 263>"),
        (b"\x84\x07\0\0\0.", "copyreg.<extension 7>"),
        (b"NN\x93.", "<computed>.<computed>"),
        (b"X\x02\0\0\0osN\x93.", "os.<computed>"),
        (b"cfoo\nBar\n)R)R.", "<computed>.<call>"),
        (b"cfoo\nBar\n)\x81)\x81.", "<computed>.<call>"),
        (b"cposix\nsystem\n\xff", "posix.system"),
        (b"cposix\nsystem\n", "posix.system"),
        (b"N.cposix\nsystem\n.", "posix.system"),
        (b"cpickle\nloads\nC\x0fcposix\nsystem\n.\x85R.", "posix.system"),
        (b"c_pickle\nloads\nC\x0fcposix\nsystem\n.\x85R.", "posix.system"),
    ],
)
def test_dangerous_names_are_recorded(stream, name):
    found = read(stream)
    assert name in [n.qualified_name for n in select_dangerous(found.globals)]


def test_pickles_in_pickles_are_scanned_to_a_depth():
    inner = b"cposix\nsystem\n."
    for _ in range(4):
        inner = pickle.dumps(LoadsItself(inner), 4)
    assert "posix.system" in named(inner)


def test_a_pickle_that_is_loaded_again_and_again_is_scanned_once():
    blob = b"B\x00\x00\x10\x00" + b"N0" * (1 << 19)
    again = b"g0\n\x85Rcpickle\nloads\n" * 10_000
    data = b"cpickle\nloads\n" + blob + b"p0\n\x85Rcpickle\nloads\n" + again + b"."
    assert named(data) == ["pickle.loads"]


class LoadsItself:
    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return pickle.loads, (self.data,)


def test_nothing_runs(tmp_path):
    marker = tmp_path / "ran"
    for protocol in PROTOCOLS:
        data = pickle.dumps(Payload(marker), protocol)
        assert [n.name for n in select_dangerous(read(data).globals)] == ["mkdir"]
    assert not marker.exists()


class Payload:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_scan_reads_one_pickle_after_the_other():
    data = pickle.dumps(1) + pickle.dumps(os.system) + pickle.dumps(eval)
    assert [name.qualified_name for name in scan_globals(data, DEFAULT_LIMITS)] == [
        "posix.system",
        "builtins.eval",
    ]


@pytest.mark.parametrize(
    ("limits", "stream", "fault"),
    [
        (Limits(opcodes=1000), b"N0" * 100_000 + b"N.", "more than 1000 opcodes"),
        (Limits(memo_slots=10), b"N" + b"\x94" * 200_000 + b".", "more than 10 memo slots"),
        (Limits(nesting=10), b"(" * 100_000 + b".", "nests deeper than 10"),
        (Limits(pickle_bytes=1000), b"X\xff\0\0\0" + b"a" * 255 + b"p0\n0"
         b"c_codecs\nencode\n(" + b"g0\nX\6\0\0\0latin1tR0c_codecs\nencode\n(" * 5 + b".",
         "more than 1000 bytes of memory"),
    ],
    ids=["opcodes", "memo", "nesting", "memory"],
)  # fmt: skip
def test_limits(limits, stream, fault):
    assert fault in read(stream, limits).error


def test_a_large_memo_index_takes_no_memory():
    assert read(b"Nr\xff\xff\xff\x7f.").error == ""


def test_a_shared_list_used_as_a_key_ends():
    doubled = b"K\x01\x85" + b"2\x86" * 60
    assert "too large" in read(b"}" + doubled + b"Ns.").error


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_fault_or_a_value(data):
    assert isinstance(read(data).error, str)
    assert isinstance(scan_globals(data, DEFAULT_LIMITS), list)


@given(PLAIN, st.sampled_from(PROTOCOLS), st.data())
def test_mutants_end_in_a_fault_or_a_value(value, protocol, data):
    stream = bytearray(pickle.dumps(value, protocol))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] = data.draw(st.integers(0, 255))
    assert isinstance(read(bytes(stream)).error, str)


@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_a_cut_stream_says_that_more_may_help(value, protocol):
    stream = pickle.dumps(value, protocol)
    for end in range(len(stream)):
        found = parse_pickle(stream[:end], DEFAULT_LIMITS)
        assert found.error, end
        assert found.is_truncated, (end, found.error)


@needs_torch("2.14", "the list is that of 2.14")
def test_safe_is_what_weights_only_takes():
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed = {tuple(name.rsplit(".", 1)) for name in _get_allowed_globals()}
    assert allowed == SAFE_GLOBALS


@pytest.mark.parametrize(
    ("name", "safety"),
    [
        ("torch._utils._rebuild_tensor_v2", Safety.SAFE),
        ("collections.OrderedDict", Safety.SAFE),
        ("torch.nn.parameter.Parameter", Safety.SAFE),
        ("argparse.Namespace", Safety.UNKNOWN),
        ("numpy._core.multiarray.scalar", Safety.UNKNOWN),
        ("numpy.core.multiarray._reconstruct", Safety.UNKNOWN),
        ("numpy.dtype", Safety.UNKNOWN),
        ("numpy.ndarray", Safety.UNKNOWN),
        ("numpy.float64", Safety.UNKNOWN),
        ("torch.nn.modules.linear.Linear", Safety.UNKNOWN),
        ("torch.nn.functional.relu", Safety.UNKNOWN),
        ("torch._C._nn.gelu", Safety.UNKNOWN),
        ("torch.optim.adam.Adam", Safety.UNKNOWN),
        ("__main__.Net", Safety.UNKNOWN),
        ("my_project.train.Config", Safety.UNKNOWN),
        ("omegaconf.dictconfig.DictConfig", Safety.UNKNOWN),
        ("pathlib.PosixPath", Safety.UNKNOWN),
        ("datetime.datetime", Safety.UNKNOWN),
        ("functools.partial", Safety.DANGEROUS),
        ("functools.reduce", Safety.DANGEROUS),
        ("builtins.eval", Safety.DANGEROUS),
        ("builtins.getattr", Safety.DANGEROUS),
        ("builtins.map", Safety.DANGEROUS),
        ("builtins.open", Safety.DANGEROUS),
        ("operator.attrgetter", Safety.DANGEROUS),
        ("operator.methodcaller", Safety.DANGEROUS),
        ("os.system", Safety.DANGEROUS),
        ("nt.system", Safety.DANGEROUS),
        ("subprocess.Popen", Safety.DANGEROUS),
        ("_posixsubprocess.fork_exec", Safety.DANGEROUS),
        ("_interpreters.run_string", Safety.DANGEROUS),
        ("codecs.open", Safety.DANGEROUS),
        ("io.open", Safety.DANGEROUS),
        ("gzip.open", Safety.DANGEROUS),
        ("sqlite3.connect", Safety.DANGEROUS),
        ("tempfile.mkdtemp", Safety.DANGEROUS),
        ("shutil.rmtree", Safety.DANGEROUS),
        ("socket.socket", Safety.DANGEROUS),
        ("uuid._get_command_stdout", Safety.DANGEROUS),
        ("imaplib.IMAP4_stream", Safety.DANGEROUS),
        ("importlib.import_module", Safety.DANGEROUS),
        ("idlelib.run.Executive", Safety.DANGEROUS),
        ("pip._internal.main", Safety.DANGEROUS),
        ("numpy.save", Safety.DANGEROUS),
        ("numpy.load", Safety.DANGEROUS),
        ("numpy.testing._private.utils.runstring", Safety.DANGEROUS),
        ("torch.save", Safety.DANGEROUS),
        ("torch.load", Safety.DANGEROUS),
        ("torch.hub.load", Safety.DANGEROUS),
        ("torch.jit.load", Safety.DANGEROUS),
        ("torch.storage._load_from_bytes", Safety.DANGEROUS),
        ("torch.utils.cpp_extension.load_inline", Safety.DANGEROUS),
        ("torch._inductor.codecache.PyCodeCache", Safety.DANGEROUS),
        ("torch.fx.graph_module.reduce_graph_module", Safety.DANGEROUS),
        ("some.package.loads", Safety.DANGEROUS),
    ],
)
def test_classify(name, safety):
    module, _, name = name.rpartition(".")
    assert classify_name(module, name) is safety


def test_a_dotted_name_is_dangerous_wherever_it_stands():
    assert classify_name("collections", "OrderedDict.fromkeys") is Safety.DANGEROUS
    assert classify_name("torch", "nn.Linear") is Safety.DANGEROUS


def test_a_name_is_one_object():
    """So that a dtype can be a key, as it can in Python."""
    root = read(b"}ctorch\nfloat32\nK\x01sctorch\nfloat32\nK\x02s.").root
    assert [(type(key), value) for key, value in root.items()] == [(GlobalName, 2)]


def test_python_2_wrote_its_strings_as_bytes():
    root = read(b"}q\x01(U\x03keyq\x02U\x04\x80\xff\x00\x01q\x03u.").root
    assert root == {"key": "\x80\xff\0\x01"}


def test_a_pickle_of_a_file_object_is_never_opened(tmp_path):
    path = tmp_path / "x"
    data = pickle.dumps(Opens(path))
    assert "io.open" in [n.qualified_name for n in select_dangerous(read(data).globals)]
    assert not path.exists()


class Opens:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return io.open, (self.path, "w")


@pytest.mark.parametrize("name", [b"c_codecs\nencode\n", b"cbuiltins\nbytearray\n"])
def test_an_encoding_that_cannot_be_hashed_is_a_fault_and_no_traceback(name, tmp_path):
    """Fuzzing found a TypeError: the arguments were looked up in a set."""
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02" + name + b"X\x01\x00\x00\x00a}\x86R.")
    with pytest.raises(CorruptCheckpointError):
        open_checkpoint(path)
