"""A revision that is a Python function: code of the project, which is run where modules are."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.worker.requests import ModuleRequest
from ckptool.errors import ModuleError, UsageError
from ckptool.phrases import quote_code
from ckptool.revisions.recorded_state import NO_TENSOR, RecordedState, parse_form, sort_keys

if TYPE_CHECKING:
    from torch import Tensor

    from ckptool.commands.worker.session import ModuleSession


class PythonStepResult(Struct, frozen=True):
    """What a revision's function returned; its tensors are in the file that was asked for."""

    count: int
    """Number of keys."""


class RunPythonStep(ModuleRequest[PythonStepResult], frozen=True):
    """What does the function of a revision make of a state_dict?"""

    answer_type = PythonStepResult
    path: Path
    function: str
    """"upgrade" or "downgrade"."""
    before: Path
    """The state_dict, as torch.save writes it."""
    after: Path
    """File for the result."""

    @property
    def activity(self) -> str:
        return f"running {self.path.name}"

    def answer(self, session: "ModuleSession") -> PythonStepResult:  # noqa: ARG002
        import torch

        state = torch.load(self.before, weights_only=True)
        result = _run_function(self.path, self.function, state)
        torch.save(result, self.after)
        return PythonStepResult(len(result))


class TracePythonStep(ModuleRequest[RecordedState], frozen=True):
    """What does the function of a revision make of the keys, shapes and dtypes of a state?"""

    answer_type = RecordedState
    path: Path
    state: RecordedState
    max_nbytes: int
    """Bytes of a state up to which the function is run, over zeros."""

    @property
    def activity(self) -> str:
        return f"running {self.path.name}"

    def answer(self, session: "ModuleSession") -> RecordedState:  # noqa: ARG002
        result = _run_function(self.path, "upgrade", self._build_zeros())
        forms = {key: _describe_form(value) for key, value in result.items()}
        return RecordedState(sort_keys(forms))

    def _build_zeros(self) -> dict[str, Any]:
        """Return the state with zeros; None for what is not a tensor.

        Raises:
            UsageError: it is large, or has tensors that are not strided.
        """
        import torch

        with torch.device("meta"):
            blank = {key: _build_blank(form) for key, form in self.state.forms.items()}
        if sum(value.nbytes for value in blank.values() if value is not None) > self.max_nbytes:
            raise UsageError(f"the state has more than {self.max_nbytes >> 20} MiB")
        zeros = {
            key: None if value is None else torch.zeros_like(value, device="cpu")
            for key, value in blank.items()
        }
        return {key: zeros[self.state.ties.get(key, key)] for key in zeros}


def _run_function(path: Path, name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Return what a function of a revision makes of a state_dict.

    Raises:
        ModuleError: it raised, or its result is not a state_dict.
    """
    from ckptool.modules.user_code import UserCodeError, user_code

    try:
        with user_code():
            result = _import_function(path, name)(state)
    except UserCodeError as error:
        raise ModuleError(str(path), f"{name}() raised {error}") from error
    if not isinstance(result, dict):
        returned = f"{name}() returned {type(result).__name__}, not a dict of tensors by key"
        hint = ": end it with `return state`" if result is None else ""
        raise ModuleError(str(path), f"{returned}{hint}")
    for key, value in result.items():
        if not isinstance(key, str):
            raise ModuleError(str(path), f"{name}() returned the key {key!r:.80}, not a string")
        if getattr(value, "is_meta", False):
            reason = f"{name}() returned {quote_code(key)} on the meta device, without data"
            raise ModuleError(str(path), reason)
    return dict(result)


def _import_function(path: Path, name: str) -> Callable[[dict[str, Any]], Any]:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"ckpt_revision_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.path.insert(0, str(path.parent.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    function: Callable[[dict[str, Any]], Any] = getattr(module, name)
    return function


def _build_blank(form: str) -> "Tensor | None":
    """Return an empty tensor of a form; None of a value that is not a tensor."""
    import torch

    parsed = parse_form(form)
    if parsed is None:
        return None
    name, shape, layout = parsed
    dtype = getattr(torch, name, None)
    if layout != "strided" or not isinstance(dtype, torch.dtype):
        raise UsageError(f"the state has a tensor that is {form}")
    return torch.empty(shape, dtype=dtype)


def _describe_form(value: object) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return NO_TENSOR
    layout = str(value.layout).removeprefix("torch.")
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {list(value.shape)}" + ("" if layout == "strided" else f" ({layout})")


class SavedState(Struct, frozen=True):
    """A state_dict that was saved to the file that was asked for."""

    nbytes: int


class SaveBuiltState(ModuleRequest[SavedState], frozen=True):
    """What state_dict does building the module give?"""

    answer_type = SavedState
    path: Path
    max_nbytes: int
    """Bytes of its tensors up to which it is saved."""

    def answer(self, session: "ModuleSession") -> SavedState:  # noqa: ARG002
        import torch

        from ckptool.verification.module_factory import open_module_factory

        with open_module_factory(self.target.build_spec(FileArguments())) as factory:
            state = factory.create_module().state_dict()
            tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
            nbytes = sum(tensor.nbytes for tensor in tensors)
            if nbytes > self.max_nbytes:
                raise UsageError(
                    f"the state has {nbytes >> 20} MiB: --fixture FILE takes a file that you choose"
                )
            torch.save(state, self.path)
        return SavedState(nbytes)
