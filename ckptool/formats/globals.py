"""GlobalName -> Safety (safe, unknown or dangerous), by lists of exact names."""

import sys
from typing import Final

from ckptool.formats.nodes import Global
from ckptool.model import Safety


def judge(name: Global) -> Safety:
    """Return the Safety of importing and calling `name`; a computed name is dangerous."""
    return Safety.DANGEROUS if name.computed else classify(name.module, name.name)


def classify(module: str, name: str) -> Safety:
    """Return the Safety of importing and calling `module.name`.

    Only listed names are safe. No list of dangerous names is complete: a name in no list is
    unknown, and dangerous if its module is one of those whose functions act.
    """
    if (module, name) in SAFE:
        return Safety.SAFE
    if "." in name:  # an attribute of an attribute reaches into any module
        return Safety.DANGEROUS
    if name in _DATA.get(module, ()):
        return Safety.UNKNOWN
    return _place(module.partition(".")[0], module, name)


def _place(root: str, module: str, name: str) -> Safety:
    if root == "torch":
        return _torch(module, name)
    if root == "numpy":
        return _numpy(module, name)
    return Safety.DANGEROUS if _acts(root) or name in _LOADERS else Safety.UNKNOWN


def _acts(root: str) -> bool:
    """Whether functions of a top-level package act on the process, files or the network."""
    private = root.startswith("_") and not root.startswith("__")
    return private or root in sys.stdlib_module_names or root in _ACTING


def _torch(module: str, name: str) -> Safety:
    """Classes of torch hold data; its functions are dangerous unless they only compute."""
    if any(module == place or module.startswith(f"{place}.") for place in _TORCH_ACTING):
        return Safety.DANGEROUS
    if _is_class(name) or module.startswith(_TORCH_COMPUTING):
        return Safety.UNKNOWN
    if module == "torch" and name in _TORCH_FUNCTIONS:
        return Safety.UNKNOWN
    return Safety.DANGEROUS


def _numpy(module: str, name: str) -> Safety:
    if any(module == place or module.startswith(f"{place}.") for place in _NUMPY_ACTING):
        return Safety.DANGEROUS
    if name in _NUMPY_REBUILD or _is_class(name) or (module == "numpy" and name in _NUMPY_TYPES):
        return Safety.UNKNOWN
    return Safety.DANGEROUS


def _is_class(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STORAGES: Final = """
    BFloat16Storage BoolStorage ByteStorage CharStorage ComplexDoubleStorage ComplexFloatStorage
    DoubleStorage FloatStorage HalfStorage IntStorage LongStorage ShortStorage
"""
_TENSORS: Final = """
    BFloat16Tensor ByteTensor CharTensor DoubleTensor FloatTensor HalfTensor IntTensor LongTensor
    ShortTensor
"""
_ALLOWED: Final = {
    "_codecs": "encode",
    "builtins": "bytearray complex set",
    "collections": "Counter OrderedDict",
    "torch": f"""
        {_STORAGES} {_TENSORS} BoolTensor Size Tensor device
        QInt32Storage QInt8Storage QUInt2x4Storage QUInt4x2Storage QUInt8Storage
        bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64
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
    "torch.cuda": f"{_STORAGES} {_TENSORS} BoolTensor",
    "torch.cuda.sparse": _TENSORS,
    "torch.nn.parameter": "Parameter",
    "torch.serialization": "_get_layout",
    "torch.sparse": _TENSORS,
    "torch.storage": "TypedStorage UntypedStorage",
}
SAFE: Final = frozenset(
    (module, name) for module, text in _ALLOWED.items() for name in text.split()
)
"""(module, name) of all that `torch.load(weights_only=True)` allows by default."""

_DATA: Final = {
    module: _names(text)
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
        "torch.jit._pickle": """
            build_boollist build_doublelist build_intlist build_tensor_from_id build_tensorlist
            restore_type_tag
        """,
        "torch.storage": "_TypedStorage _UntypedStorage",
        "torch._tensor": "_rebuild_from_type",
        "torch._utils": "_rebuild_xla_tensor _rebuild_sparse_csr_tensor",
    }.items()
}
"""Module -> its names that only hold data (standard library, torch): unknown, not dangerous."""

_ACTING: Final = _names(
    """
    IPython __builtin__ aiohttp asyncore asynchat bdb boto3 cPickle cffi cloudpickle commands dill
    distutils django execnet fabric fickling fsspec gevent httpx huggingface_hub imp invoke
    ipykernel joblib jsonpickle keras lib2to3 mlflow nltk numba pandas paramiko pexpect pip
    pkg_resources psutil pydash requests setuptools sh smtpd smtplib sympy tensorflow test
    twisted urllib2 urllib3 virtualenv wheel yaml
    """
)
"""Top-level packages outside the standard library whose functions open, fetch, run or load."""

_LOADERS: Final = _names(
    "__import__ apply check_output compile delattr eval exec execfile getattr"
    " import_module loads open popen run_path setattr spawn system unsafe_load"
)
"""Function names that are dangerous in every module."""

_TORCH_ACTING: Final = (
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
_TORCH_COMPUTING: Final = ("torch.nn.", "torch._C._nn", "torch._VF", "torch.special")
_TORCH_FUNCTIONS: Final = _names(
    "abs celu celu_ clamp cos exp hardshrink log log_softmax norm preserve_format channels_last"
    " contiguous_format relu relu_ rrelu selu selu_ sigmoid sin softmax sparse_bsc sparse_bsr"
    " sparse_coo sparse_csc sparse_csr sqrt square strided tanh tanh_ threshold"
)
_NUMPY_ACTING: Final = (
    "numpy.distutils",
    "numpy.f2py",
    "numpy.lib",
    "numpy.testing",
    "numpy.ctypeslib",
)
_NUMPY_REBUILD: Final = _names(
    "_reconstruct scalar dtype ndarray _frombuffer _mareconstruct _convert_to_stringdtype_kwargs"
    " __randomstate_ctor __generator_ctor __bit_generator_ctor _ufunc_reconstruct"
)
_NUMPY_TYPES: Final = _names(
    """
    bool bool_ byte bytes_ cdouble clongdouble complex128 complex64 csingle datetime64 double
    float16 float32 float64 generic half int16 int32 int64 int8 intc int_ intp long longdouble
    longlong object_ number recarray record short single str_ timedelta64 ubyte uint uint16 uint32
    uint64
    uint8 uintc uintp ulong ulonglong ushort unicode_
    void
    """
)
