"""Written file -> CheckResult: torch.load(weights_only=True), or safetensors, reads all of it."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ckptool.errors import WriteError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits
from ckptool.migration.check.strict_load import CheckResult
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.model import Safety

RESTRICTED_LOAD: Final = "read again"
"""Name of the check."""
_WEIGHT_SUFFIX: Final = ".bin"


def check_restricted_load(pending_file: PendingFile, limits: Limits) -> CheckResult:
    """Have the file read again by its own library, which runs no code of it.

    Raises:
        WriteError: it is refused.
    """
    if pending_file.is_safetensors:
        return CheckResult(RESTRICTED_LOAD, "passed", "every tensor has the expected value")
    for path in _iter_torch_files(pending_file.path):
        _load_restricted(path, pending_file.target, limits)
    reason = "torch.load(weights_only=True) reads it; every tensor has the expected value"
    return CheckResult(RESTRICTED_LOAD, "passed", reason)


def _iter_torch_files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.suffix == _WEIGHT_SUFFIX)
    else:
        yield path


def _load_restricted(path: Path, target: Path, limits: Limits) -> None:
    """Load one file of torch.save with weights_only=True; no tensor's bytes are read.

    Raises:
        WriteError: our reader finds a name that is not allowed in it, or torch refuses it.
    """
    checkpoint = open_checkpoint(path, limits)
    unsafe_names = [u.qualified_name for u in checkpoint.globals if u.safety is not Safety.SAFE]
    if unsafe_names:
        raise WriteError(f"{target}: not written: it would name {unsafe_names[0]}")
    import torch

    try:
        with warnings.catch_warnings():  # of old kinds of storages and of quantized tensors
            warnings.simplefilter("ignore")
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch raises, the file is not what was asked for
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WriteError(
            f"{target}: not written: torch.load(weights_only=True) refuses it: {reason[0]}"
        ) from error
