"""Name of the callee in a pickle -> function that rebuilds its tensor."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ckptool.formats.limits import Limits
from ckptool.formats.pickle.tensors.layouts import (
    rebuild_jagged_tensor,
    rebuild_nested_tensor,
    rebuild_quantized_tensor,
    rebuild_sparse_tensor,
)
from ckptool.formats.pickle.tensors.legacy import (
    rebuild_first_tensor,
    rebuild_legacy_parameter,
    rebuild_legacy_tensor,
)
from ckptool.formats.pickle.tensors.storage import EmbeddedStorageReader
from ckptool.formats.pickle.tensors.strided import (
    rebuild_device_tensor,
    rebuild_meta_tensor,
    rebuild_parameter,
    rebuild_tensor_v2,
    rebuild_tensor_v3,
    rebuild_uninitialized,
)
from ckptool.formats.pickle.tensors.subclasses import rebuild_from_type, rebuild_wrapper_subclass
from ckptool.formats.pickle.tensors.tensor_reader import RebuildFunction, TensorInfoReader

_LEGACY_TENSOR_TYPES: Final = "Float Double Half BFloat16 Byte Char Short Int Long Bool"
REBUILD_FUNCTIONS: Final[Mapping[tuple[str, str], RebuildFunction]] = MappingProxyType(
    {
        ("torch._utils", "_rebuild_tensor"): rebuild_first_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): rebuild_tensor_v3,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
        ("torch._utils", "_rebuild_sparse_tensor"): rebuild_sparse_tensor,
        ("torch._utils", "_rebuild_sparse_csr_tensor"): rebuild_sparse_tensor,
        ("torch._utils", "_rebuild_qtensor"): rebuild_quantized_tensor,
        ("torch._utils", "_rebuild_nested_tensor"): rebuild_nested_tensor,
        ("torch.nested._internal.nested_tensor", "_rebuild_njt"): rebuild_jagged_tensor,
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): rebuild_meta_tensor,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): rebuild_device_tensor,
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): rebuild_device_tensor,
        ("torch._utils", "_rebuild_xla_tensor"): rebuild_device_tensor,
        ("torch._utils", "_rebuild_wrapper_subclass"): rebuild_wrapper_subclass,
        ("torch._tensor", "_rebuild_from_type_v2"): rebuild_from_type,
        ("torch._tensor", "_rebuild_from_type"): rebuild_from_type,
        ("torch.tensor", "_rebuild_from_type"): rebuild_from_type,
        ("torch.nn.parameter", "Parameter"): rebuild_legacy_parameter,
        ("torch.nn.parameter", "UninitializedParameter"): rebuild_uninitialized,
        ("torch.nn.parameter", "UninitializedBuffer"): rebuild_uninitialized,
        ("torch.autograd.variable", "Variable"): rebuild_legacy_parameter,
        ("torch", "Tensor"): rebuild_legacy_tensor,
        **{
            (module, f"{name}Tensor"): rebuild_legacy_tensor
            for name in _LEGACY_TENSOR_TYPES.split()
            for module in ("torch", "torch.cuda")
        },
    }
)
"""(module, name) of the callee in a pickle -> RebuildFunction of the tensor it returns."""


def create_tensor_reader(
    limits: Limits, read_embedded: EmbeddedStorageReader | None = None, *, is_script: bool = False
) -> TensorInfoReader:
    """Return a reader of the tensors of one tree, which knows all of these functions.

    Args:
        limits: of the rank of a tensor.
        read_embedded: reads a storage that is a file of torch.save in the pickle; None if the
            container has no such storages.
        is_script: whether TorchScript wrote the pickle.
    """
    return TensorInfoReader(limits, REBUILD_FUNCTIONS, read_embedded, is_script=is_script)
