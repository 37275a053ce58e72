"""GlobalName -> Safety: safe by a list of exact names, dangerous by what the name resolves to."""

import sys
from collections.abc import Iterable
from typing import Final

from ckptool.formats.pickle.name_origin import NameOrigin, OriginKind, resolve_origin
from ckptool.formats.pickle.nodes import GlobalName
from ckptool.model import Safety


def classify_global(name: GlobalName) -> Safety:
    """Return the Safety of importing and calling `name`; a computed name is dangerous."""
    return Safety.DANGEROUS if name.computed else classify_name(name.module, name.name)


def classify_name(module: str, name: str) -> Safety:
    """Return the Safety of importing and calling `module.name`.

    Only listed names are safe. A name of an installed package is judged by where the object is
    defined, so that a re-export of `subprocess.Popen` is dangerous whatever it is called. No list
    of dangerous names is complete: what is neither is unknown, and a gate refuses it.
    """
    if (module, name) in SAFE_GLOBALS:
        return Safety.SAFE
    if "." in name:  # an attribute of an attribute reaches into any module
        return Safety.DANGEROUS
    if name in _DATA_NAMES.get(module, ()):
        return Safety.UNKNOWN
    if (module, name) in _COMPILED_DATA_NAMES:
        return Safety.UNKNOWN
    package = module.partition(".")[0]
    if _has_side_effects(package) or name in _DANGEROUS_NAMES:
        return Safety.DANGEROUS
    return _classify_origin(resolve_origin(module, name))


def _classify_origin(origin: NameOrigin) -> Safety:
    module, name = origin.module, origin.name
    if origin.kind is OriginKind.MODULE:  # its attributes can be replaced by BUILD
        return Safety.DANGEROUS
    if (module, name) in SAFE_GLOBALS or name in _DATA_NAMES.get(module, ()):
        return Safety.UNKNOWN
    package = module.partition(".")[0]
    if _has_side_effects(package) or name in _DANGEROUS_NAMES or _inherits_side_effects(origin):
        return Safety.DANGEROUS
    if package == "torch":
        return _classify_torch_origin(origin)
    return _classify_numpy_name(module, name) if package == "numpy" else Safety.UNKNOWN


def _has_side_effects(package: str) -> bool:
    """Whether functions of a top-level package act on the process, files or the network."""
    is_private = package.startswith("_") and not package.startswith("__")
    return is_private or package in sys.stdlib_module_names or package in _DANGEROUS_PACKAGES


def _inherits_side_effects(origin: NameOrigin) -> bool:
    """Whether a class has a base whose objects act, however far up: Popen, Thread or socket."""
    todo, visited = list(origin.bases), set[tuple[str, str]]()
    while todo and len(visited) < _MAX_BASES:
        base = todo.pop()
        if base in visited or not base[1]:
            continue
        visited.add(base)
        base_origin = resolve_origin(*base)
        package = base_origin.module.partition(".")[0]
        is_data = base_origin.name in _DATA_NAMES.get(base_origin.module, ())
        is_standard = package in sys.stdlib_module_names
        if is_standard and not is_data and package not in _ABSTRACT_PACKAGES:
            return True
        todo += base_origin.bases
    return False


def _classify_torch_origin(origin: NameOrigin) -> Safety:
    """Python classes of torch are unknown; all else is dangerous unless it only computes."""
    module, name = origin.module, origin.name
    if _is_in_package(module, _DANGEROUS_TORCH_MODULES):
        return Safety.DANGEROUS
    if _is_in_package(module, _TORCH_COMPUTE_MODULES):
        return Safety.UNKNOWN
    is_class = origin.kind is OriginKind.CLASS
    if origin.kind is OriginKind.UNRESOLVED and not _is_compiled_torch_name(module):
        is_class = _is_class_name(name)
    return Safety.UNKNOWN if is_class else Safety.DANGEROUS


def _is_compiled_torch_name(module: str) -> bool:
    """Whether a name that no source defines is of torch's compiled code: it may do anything."""
    return module == "torch" or _is_in_package(module, ("torch._C",))


def _is_in_package(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _classify_numpy_name(module: str, name: str) -> Safety:
    if _is_in_package(module, _DANGEROUS_NUMPY_MODULES):
        return Safety.DANGEROUS
    is_data = name in _NUMPY_REBUILD_FUNCTIONS or _is_class_name(name)
    return Safety.UNKNOWN if is_data else Safety.DANGEROUS


def _is_class_name(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


def _split_names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STORAGE_CLASSES: Final = """
    BFloat16Storage BoolStorage ByteStorage CharStorage ComplexDoubleStorage ComplexFloatStorage
    DoubleStorage FloatStorage HalfStorage IntStorage LongStorage ShortStorage
"""
_TENSOR_CLASSES: Final = """
    BFloat16Tensor ByteTensor CharTensor DoubleTensor FloatTensor HalfTensor IntTensor LongTensor
    ShortTensor
"""
_WEIGHTS_ONLY_NAMES: Final = {
    "_codecs": "encode",
    "builtins": "bytearray complex set",
    "collections": "Counter OrderedDict",
    "torch": f"""
        {_STORAGE_CLASSES} {_TENSOR_CLASSES} BoolTensor Size Tensor device
        QInt32Storage QInt8Storage QUInt2x4Storage QUInt4x2Storage QUInt8Storage
        bcomplex32 bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64
        float16 float32 float4_e2m1fn_x2 float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2
        float8_e5m2fnuz float8_e8m0fnu
        int1 int2 int3 int4 int5 int6 int7 int8 int16 int32 int64
        uint1 uint2 uint3 uint4 uint5 uint6 uint7 uint8 uint16 uint32 uint64
        per_channel_affine per_channel_affine_float_qparams per_channel_symmetric
        per_tensor_affine per_tensor_symmetric qint32 qint8 quint2x4 quint4x2 quint8
    """,
    "torch._tensor": "_rebuild_from_type_v2",
    "torch._utils": """
        _rebuild_device_tensor_from_cpu_tensor _rebuild_device_tensor_from_numpy
        _rebuild_meta_tensor_no_storage _rebuild_nested_tensor _rebuild_parameter
        _rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor _rebuild_tensor
        _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_wrapper_subclass
    """,
    "torch.cuda": f"{_STORAGE_CLASSES} {_TENSOR_CLASSES} BoolTensor",
    "torch.cuda.sparse": _TENSOR_CLASSES,
    "torch.nn.parameter": "Parameter",
    "torch.serialization": "_get_layout",
    "torch.sparse": _TENSOR_CLASSES,
    "torch.storage": "TypedStorage UntypedStorage",
}
SAFE_GLOBALS: Final = frozenset(
    (module, name) for module, text in _WEIGHTS_ONLY_NAMES.items() for name in text.split()
)
"""(module, name) of all that `torch.load(weights_only=True)` allows by default, as of torch 2.14.

A test compares the list with that of the installed torch.
"""

_DATA_NAMES: Final = {
    module: _split_names(text)
    for module, text in {
        "array": "_array_reconstructor array",
        "argparse": "Namespace",
        "builtins": """
            Ellipsis NotImplemented bool bytes dict float frozenset int list object range slice str
            tuple ArithmeticError AssertionError AttributeError EOFError Exception IndexError
            KeyError LookupError NameError NotImplementedError OSError OverflowError RuntimeError
            StopIteration TypeError UserWarning ValueError Warning ZeroDivisionError
        """,
        "collections": "ChainMap UserDict UserList UserString defaultdict deque",
        "copyreg": "__newobj__ __newobj_ex__ _reconstructor",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "enum": "Enum Flag IntEnum IntFlag StrEnum",
        "fractions": "Fraction",
        "itertools": "count cycle repeat",
        "logging": "getLogger",
        "math": "ceil cos exp floor log log2 sin sqrt tanh",
        "operator": "itemgetter add mul sub truediv",
        "_operator": "itemgetter add mul sub truediv",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "random": "Random",
        "re": "_compile",
        "types": "GenericAlias MappingProxyType NoneType SimpleNamespace",
        "typing": "Any Dict List Optional Tuple Union",
        "uuid": "SafeUUID UUID",
        "joblib.numpy_pickle": "NumpyArrayWrapper",
        "torch.jit._pickle": """
            build_boollist build_doublelist build_intlist build_tensor_from_id build_tensorlist
            restore_type_tag
        """,
        "torch.storage": "_TypedStorage _UntypedStorage",
        "torch._tensor": "_rebuild_from_type",
        "torch._dynamo.decorators": "_DimRange",
        "torch.nested._internal.nested_tensor": "NestedTensor _rebuild_njt",
        "torch._utils": "_rebuild_xla_tensor _rebuild_sparse_csr_tensor",
    }.items()
}
"""Module -> its names that only hold data (standard library, torch): unknown, not dangerous."""

_DANGEROUS_PACKAGES: Final = _split_names(
    """
    IPython __builtin__ aiohttp asyncore asynchat bdb boto3 cPickle cffi cloudpickle commands dill
    distutils django execnet fabric fickling fsspec gevent httpx huggingface_hub imp invoke
    ipykernel joblib jsonpickle keras lib2to3 mlflow nltk numba pandas paramiko pexpect pip
    pkg_resources psutil pydash requests setuptools sh smtpd smtplib sympy tensorflow test
    twisted urllib2 urllib3 virtualenv wheel yaml
    """
)
"""Top-level packages outside the standard library whose functions open, fetch, run or load."""

_DANGEROUS_NAMES: Final = _split_names(
    "__import__ apply check_output compile delattr eval exec execfile getattr"
    " import_module loads open popen run_path setattr spawn system unsafe_load"
)
"""Function names that are dangerous in every module."""

_DANGEROUS_TORCH_MODULES: Final = (
    "torch._C._distributed_rpc",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.rpc",
    "torch.fx.graph_module",
    "torch.hub",
    "torch.jit",
    "torch.multiprocessing",
    "torch.package",
    "torch.serialization",
    "torch.testing",
    "torch.utils.cpp_extension",
    "torch.utils.data.datapipes",
    "torch.utils.model_zoo",
)
_TORCH_COMPUTE_MODULES: Final = (
    "torch.nn.functional",
    "torch.nn.init",
    "torch.nn.modules",
    "torch._C._nn",
    "torch._VF",
    "torch.special",
)
_MAX_BASES: Final = 32
"""Base classes of one class that are looked at."""
_ABSTRACT_PACKAGES: Final = _split_names(
    "abc collections contextlib dataclasses enum numbers types typing builtins"
)
"""Packages of the standard library whose classes describe others and do nothing themselves."""
_TORCH_FUNCTIONS: Final = _split_names(
    "Event Generator Stream Tag dtype finfo iinfo layout memory_format qscheme"
    " abs celu celu_ clamp cos exp hardshrink log log_softmax norm preserve_format channels_last"
    " contiguous_format relu relu_ rrelu selu selu_ sigmoid sin softmax sparse_bsc sparse_bsr"
    " sparse_coo sparse_csc sparse_csr sqrt square strided tanh tanh_ threshold"
)
_DANGEROUS_NUMPY_MODULES: Final = (
    "numpy.distutils",
    "numpy.f2py",
    "numpy.lib",
    "numpy.testing",
    "numpy.ctypeslib",
)
_NUMPY_REBUILD_FUNCTIONS: Final = _split_names(
    "_reconstruct scalar dtype ndarray _frombuffer _mareconstruct _convert_to_stringdtype_kwargs"
    " __randomstate_ctor __generator_ctor __bit_generator_ctor _ufunc_reconstruct"
)
_NUMPY_TYPES: Final = _split_names(
    """
    bool bool_ byte bytes_ cdouble clongdouble complex128 complex64 csingle datetime64 double
    float16 float32 float64 generic half int16 int32 int64 int8 intc int_ intp long longdouble
    longlong object_ number recarray record short single str_ timedelta64 ubyte uint uint16 uint32
    uint64
    uint8 uintc uintp ulong ulonglong ushort unicode_
    void
    """
)
_COMPILED_DATA_NAMES: Final = frozenset(
    [("torch", name) for name in _TORCH_FUNCTIONS] + [("numpy", name) for name in _NUMPY_TYPES]
)
"""(module, name) of compiled classes and functions that hold data or compute, in no source file."""
