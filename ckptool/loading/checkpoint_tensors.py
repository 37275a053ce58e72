"""CheckpointTensors: a checkpoint as a read-only mapping of tensors, made when asked for."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Self

from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.loading.tensor_reader import TensorReader
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.source_guard import SourceGuard
from ckptool.migration.write.inflate_storages import inflate_storages
from ckptool.model import Checkpoint, StateDict
from ckptool.phrases import pluralize

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointTensors(Mapping[str, "Tensor"]):
    """Tensors of one state of a checkpoint, by key, as torch.load gives them.

    Each access makes the tensor: a view of the mapped file, on the CPU, without a copy. Tensors
    that share a storage in the file share it here. Writing into a tensor does not change the file.
    Leaving the `with` block, or `close()`, lets go of the file; tensors made before stay valid.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        state: StateDict,
        source_guard: SourceGuard,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._inflated = AnonymousFile()
        whole = inflate_storages(checkpoint, self._inflated, limits)
        states = [found for found in whole.states if found.at == state.at]
        self._state = states[0] if whole is not checkpoint and states else state
        self._reader = TensorReader(whole, state.at, source_guard)
        self.path = checkpoint.path
        self.at = state.at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; tensors that were made before stay as they are."""
        self._reader.close()
        self._inflated.__exit__()

    def __getitem__(self, key: str) -> "Tensor":
        """Return a new tensor over the bytes of the file.

        Raises:
            KeyError: the state has no tensor of this name.
            ReadError: the file was closed, or cannot be read.
        """
        return self._reader.read_tensor(self._state.tensors[key], key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state.tensors)

    def __len__(self) -> int:
        return len(self._state.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._state.tensors

    def __repr__(self) -> str:
        place = f" at {self.at}" if self.at else ""
        return f"<{type(self).__name__}: {pluralize(len(self), 'tensor')} of {self.path}{place}>"
