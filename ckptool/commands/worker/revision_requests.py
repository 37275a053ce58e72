"""A revision that is a Python function: code of the project, which is run where modules are."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.worker.requests import ModuleRequest
from ckptool.errors import ModuleError, UsageError

if TYPE_CHECKING:
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

        from ckptool.modules.user_code import UserCodeError, user_code

        state = torch.load(self.before, weights_only=True)
        try:
            with user_code():
                result = self._import_function()(state)
        except UserCodeError as error:
            raise self._build_error(f"{self.function}() raised {error}") from error
        if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
            raise self._build_error(
                f"{self.function}() returned {type(result).__name__}, not a dict of tensors by key"
            )
        torch.save(dict(result), self.after)
        return PythonStepResult(len(result))

    def _import_function(self) -> Callable[[dict[str, Any]], Any]:
        from importlib.util import module_from_spec, spec_from_file_location

        spec = spec_from_file_location(f"ckpt_revision_{self.path.stem}", self.path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.path.insert(0, str(self.path.parent.parent.absolute()))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.pop(0)
        function: Callable[[dict[str, Any]], Any] = getattr(module, self.function)
        return function

    def _build_error(self, reason: str) -> ModuleError:
        return ModuleError(str(self.path), reason)


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
