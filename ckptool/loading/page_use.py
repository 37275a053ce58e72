"""Copies from mapped files: the pages that were read are let go of while the load goes on.

So a load needs little more memory than its largest tensor, however large the file.
"""

import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MAX_KEPT_NBYTES: Final = 8 << 20
"""Bytes of pages that are kept mapped: letting go of each tensor's alone takes longer."""
_DROP: Final = getattr(mmap, "MADV_DONTNEED", None)


class PageUse(TorchFunctionMode):
    """Sees each `copy_` from a mapped tensor. Only where nothing writes into those tensors."""

    def __init__(self, maps: Iterable[tuple[int, mmap.mmap]]) -> None:
        """`maps` are the mapped files, each with its address."""
        super().__init__()
        self._maps = sorted(maps, key=lambda pair: pair[0])
        self._addresses = [address for address, _ in self._maps]
        self._kept_nbytes = 0
        self._kept: dict[int, tuple[int, int]] = {}
        """Index of a map -> first byte and end of what was read from it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`; after a copy, let go of pages if many are kept."""
        result = func(*args, **(kwargs or {}))
        if func is Tensor.copy_ and len(args) > 1:
            self._note_read(args[1])
            if self._kept_nbytes >= _MAX_KEPT_NBYTES:
                self._drop_pages()
        return result

    def _note_read(self, tensor: Any) -> None:
        is_dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided
        if not is_dense or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return
        index = bisect_right(self._addresses, tensor.data_ptr()) - 1
        if index < 0:
            return
        start = tensor.data_ptr() - self._addresses[index]
        first, end = self._kept.get(index, (start, start))
        self._kept[index] = min(first, start), max(end, start + tensor.nbytes)
        self._kept_nbytes += tensor.nbytes

    def _drop_pages(self) -> None:
        for index, (first, end) in self._kept.items():
            pages = self._maps[index][1]
            page_start = first // mmap.PAGESIZE * mmap.PAGESIZE
            if _DROP is not None:
                with suppress(OSError, ValueError):  # beyond this map: another's memory
                    pages.madvise(_DROP, page_start, min(end, len(pages)) - page_start)
        self._kept.clear()
        self._kept_nbytes = 0
