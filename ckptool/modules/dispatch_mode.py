"""DispatchMode: torch's dispatch mode, without an import of torch's compiler."""

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Base class of the modes whose `__torch_dispatch__` sees each call of an operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch wraps `__torch_dispatch__` in a function that imports its compiler, which
        # takes a second; nothing is compiled here. Older versions of torch do not ask.
        return False
