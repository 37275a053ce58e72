"""Data passed between the stages: frozen msgspec structs that need no torch.

Conventions of all structs in this package:

- A `str` field whose default is "" means "none" or "not known".
- `at` is the dotted place of a state_dict, or of a value, inside a file: "model.ema", or "" for
  the top level.
"""

from ckptool.model.checkpoint import (
    Checkpoint,
    Container,
    ContainerIssue,
    Content,
    GlobalUse,
    IssueKind,
    PickledModule,
    PlainEntry,
    QuantizationDeclaration,
    Safety,
    StateDict,
    all_tensors,
)
from ckptool.model.dtypes import BYTE_DTYPES, DTYPE_BITS, STRUCT_CODES
from ckptool.model.keys import collect_last_segments, join_key, natural_sort_key, to_dotted_key
from ckptool.model.module import (
    CONSTANCY_CHECK,
    ComputedParameter,
    Constancy,
    ModuleClass,
    ModuleInfo,
    ModuleTensor,
)
from ckptool.model.skipped import Skipped
from ckptool.model.tensors import (
    Kind,
    Preview,
    Span,
    StorageInfo,
    TensorComponent,
    TensorInfo,
    contiguous_stride,
    group_by_storage,
    tied_keys,
)

__all__ = [
    "BYTE_DTYPES",
    "CONSTANCY_CHECK",
    "DTYPE_BITS",
    "STRUCT_CODES",
    "Checkpoint",
    "ComputedParameter",
    "Constancy",
    "Container",
    "ContainerIssue",
    "Content",
    "GlobalUse",
    "IssueKind",
    "Kind",
    "ModuleClass",
    "ModuleInfo",
    "ModuleTensor",
    "PickledModule",
    "PlainEntry",
    "Preview",
    "QuantizationDeclaration",
    "Safety",
    "Skipped",
    "Span",
    "StateDict",
    "StorageInfo",
    "TensorComponent",
    "TensorInfo",
    "all_tensors",
    "collect_last_segments",
    "contiguous_stride",
    "group_by_storage",
    "join_key",
    "natural_sort_key",
    "tied_keys",
    "to_dotted_key",
]
