"""PendingFile and module -> CheckResults: strict load and forward."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ckptool.errors import WriteError
from ckptool.modules.usercode import UserCodeError, user_code

if TYPE_CHECKING:
    import torch

    from ckptool.migration.live import Live

NO_MODULE: Final = "no module was named: -m package.module:Name"


class Check(Struct, frozen=True):
    """Result of one check of the written file."""

    name: str
    result: str
    """"passed" or "skipped"; a failed check raises, and the file is discarded."""
    reason: str = ""


class Written(Struct, frozen=True):
    """A complete file at a temporary path, before it is renamed to its target."""

    path: Path
    target: Path
    safetensors: bool
    at: str
    """Path of the state_dict in the file; "" for the root."""
    ties: Mapping[str, str]
    """Omitted tied keys -> the key that is stored."""
    unmet: str = ""
    """Text of known obstacles to strict loading; "" for none."""


def verify(written: Written, live: "Live | None", proof: "Proof | None") -> tuple[Check, ...]:
    """Run all checks of the file.

    Raises:
        WriteError: a check failed.
    """
    return strict_load(written, live), forward(written, proof)


def strict_load(written: Written, live: "Live | None") -> Check:
    """Load the file into the module with strict=True and assign=True: no copy of the parameters.

    Skipped without a module, or if torch.load(weights_only=True) refuses the file.

    Raises:
        WriteError: load_state_dict failed.
    """
    name = "strict load"
    if live is None:
        return Check(name, "skipped", NO_MODULE)
    try:
        state = _loaded(written)
    except pickle.UnpicklingError as error:
        reason = f"torch.load(weights_only=True) refuses the file: {str(error).splitlines()[0]}"
        return Check(name, "skipped", reason)
    try:
        with warnings.catch_warnings(), user_code():
            warnings.simplefilter("ignore")
            live.module.load_state_dict(state, strict=True, assign=True)
    except UserCodeError as error:
        reason = written.unmet or " ".join(str(error).split())
        message = f"{written.target}: not written: strict loading fails: {reason}"
        raise WriteError(message) from error
    return Check(name, "passed", f"into {live.state.target}")


def forward(written: Written, proof: "Proof | None") -> Check:
    """Run the module on the file's tensors; skipped without inputs."""
    if proof is None:
        return Check("forward", "skipped", "not asked for: --input or --inputs")
    return proof(written)


Proof = Callable[[Written], Check]
"""Runs the levels of `ckptool verify` on a pending file."""


def _loaded(written: Written) -> "dict[str, torch.Tensor]":
    if written.safetensors:
        return _from_safetensors(written)
    import torch

    found: Any = torch.load(written.path, map_location="cpu", weights_only=True, mmap=True)
    for step in _steps(found, written.at):
        found = found[step]
    return dict(found) if not hasattr(found, "_metadata") else found


def _steps(found: Any, at: str) -> list[Any]:
    """Return the keys on the path `at`; a key may contain dots."""
    if not at:
        return []
    for key in found if isinstance(found, dict) else range(len(found)):
        text = str(key)
        if at == text:
            return [key]
        if at.startswith(f"{text}."):
            return [key, *_steps(found[key], at.removeprefix(f"{text}."))]
    raise KeyError(at)


def _from_safetensors(written: Written) -> "dict[str, torch.Tensor]":
    from safetensors import safe_open

    state: dict[str, torch.Tensor] = {}
    folder = written.path.is_dir()
    for path in written.path.glob("*.safetensors") if folder else (written.path,):
        with safe_open(path, framework="pt") as file:
            state |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return state | {name: state[kept] for name, kept in written.ties.items()}
