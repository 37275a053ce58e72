"""RecordedState -> a draft with its keys, shapes and dtypes, without values or with blank ones."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ckptool.errors import PlanError, RevisionError
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.draft import Draft, create_draft
from ckptool.migration.plan.plan_file import Op, apply_plan
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Container,
    Span,
    StateDict,
    StorageInfo,
    TensorInfo,
    contiguous_stride,
)
from ckptool.revisions.recorded_state import (
    NO_TENSOR,
    RecordedState,
    parse_form,
    record_draft,
)

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule


def build_skeleton(name: Path, state: RecordedState, blank_file: Path | None = None) -> Draft:
    """Return the draft of a recorded state.

    Args:
        name: stands for the file in messages.
        state: what is recorded.
        blank_file: empty file that becomes as large as the tensors, without taking space, so that
            a step can compute with them; None for tensors whose values nobody can read.
    """
    tensors: dict[str, TensorInfo] = {}
    storages: dict[str, StorageInfo] = {}
    offset = 0
    for key, form in state.forms.items():
        parsed = parse_form(form)
        if parsed is None:
            continue
        dtype, shape, layout = parsed
        kept_key = state.ties.get(key, key)
        storage = storages.get(kept_key)
        tensor = TensorInfo(key, shape, dtype, contiguous_stride(shape), 0, storage, layout)
        if storage is None and dtype in DTYPE_BITS and layout == "strided":
            nbytes = tensor.nbytes
            span = Span(blank_file, offset, nbytes) if blank_file else None
            storages[kept_key] = StorageInfo(kept_key, nbytes, span=span)
            tensor = TensorInfo(key, shape, dtype, tensor.stride, 0, storages[kept_key], layout)
            offset += nbytes
        tensors[key] = tensor
    if blank_file is not None:
        os.truncate(blank_file, offset)
    non_tensors = {key: "a value" for key, form in state.forms.items() if form == NO_TENSOR}
    state_dict = StateDict("", tensors, non_tensors=non_tensors)
    return create_draft(Checkpoint(name, Container.TORCH_ZIP, offset, (state_dict,)), state_dict)


def apply_to_skeleton(
    name: Path,
    state: RecordedState,
    operations: Sequence[Op],
    target_module: "TargetModule | None" = None,
) -> RecordedState:
    """Return what steps make of a recorded state; tensors that they compute with are blank.

    Raises:
        RevisionError: a step does not apply.
    """
    with TemporaryDirectory(prefix="ckptool-chain-") as folder, AnonymousFile() as anonymous_file:
        blank_file = Path(folder, "blank")
        blank_file.touch()
        draft = build_skeleton(name, state, blank_file)
        sources = ValueSources(
            target_module,
            None,
            anonymous_file,
            SourceGuard(),
            DEFAULT_LIMITS,
            follows_chain=True,
        )
        try:
            return record_draft(apply_plan(operations, draft, sources))
        except PlanError as error:
            raise RevisionError(f"{name.stem} does not apply: {error}") from error
