"""Storage that a pickle refers to, located in its container."""

from collections.abc import Callable

from msgspec import Struct

from ckptool.model import StorageInfo


class SavedStorage(Struct, gc=False):
    """A storage that a pickle refers to, located in its container."""

    info: StorageInfo
    dtype: str
    """dtype of its elements; "uint8" for an untyped storage."""
    numel: int
    start: int = 0
    """First element of a storage view in `info`; only torch before 1.6 wrote them."""


EmbeddedStorageReader = Callable[[bytes], SavedStorage]
"""(bytes of a file of torch.save that a pickle embeds) -> its storage."""
