"""Configuration of a folder -> module, built in proportion to the weights beside it.

A configuration is a few numbers, and chooses how much is built: it is held to what the weights
could fill, first in a build on meta, where nothing is allocated.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ckptool.errors import ModuleError
from ckptool.formats.files.source import is_directory, open_source, path_exists
from ckptool.formats.files.weight_names import is_index_name, list_file_names
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.sharded.reader import list_shard_names
from ckptool.loaders.offline import run_offline
from ckptool.locations import Location, RemotePath
from ckptool.modules.build import preserve_random_state
from ckptool.phrases import pluralize

if TYPE_CHECKING:
    from torch import nn

_WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MAX_ASKED: Final = 8
"""Remote files whose size is asked for."""
_ELEMENTS_PER_BYTE: Final = 64
"""Elements of parameters per byte of weights: eight elements of one bit, eight times over."""
_FREE_ELEMENTS: Final = 1 << 28
"""Elements of parameters that are always allowed."""
_FREE_BUFFER_NBYTES: Final = 2 << 30
_FREE_MODULES: Final = 10_000
_NBYTES_PER_MODULE: Final = 512
"""Bytes of weights for each further module: a tensor's entry in a header takes more than 60."""


def build_within_limits(build: "Callable[[], nn.Module]", folder: Location) -> "nn.Module":
    """Return what `build` returns, which is called without a network.

    Args:
        build: builds the module that the folder's configuration describes.
        folder: the folder; without weights in it only modules and buffers are bounded.

    Raises:
        ModuleError: the module is out of proportion to the weights; nothing is allocated then.
    """
    import torch

    nbytes = count_weight_nbytes(folder)
    with run_offline(), preserve_random_state(), limit_build(folder, nbytes):
        try:
            with torch.device("meta"):
                # Kept until the end: what is recorded of modules is found by their identity.
                sketch = build()
        except ModuleError:
            raise
        except Exception:  # noqa: BLE001 (a class that cannot be built on meta: built for real)
            sketch = None
    with run_offline(), limit_build(folder, nbytes):
        module = build()
    del sketch
    return module


@contextmanager
def limit_build(folder: Location, nbytes: int) -> Iterator[None]:
    """Within it, the constructor that goes beyond what the folder's weights could fill raises.

    Raises:
        ModuleError: it did; the message says of what there is too much.
    """
    from torch.nn.modules import module as registration

    weights = (
        f"the weights next to it have {pluralize(nbytes, 'byte')}"
        if nbytes
        else "there are no weights next to it"
    )
    counts: Counter[str] = Counter()

    def count(noun: str, number: int, allowed: int) -> None:
        counts[noun] += number
        if counts[noun] > allowed:
            reason = f"its configuration asks for more than {pluralize(allowed, noun)}"
            raise ModuleError(str(folder), f"{reason}, and {weights}")

    def count_parameter(_: Any, __: str, parameter: Any) -> None:
        allowed = _FREE_ELEMENTS + _ELEMENTS_PER_BYTE * nbytes
        count("parameter", _count_elements(parameter) if nbytes else 0, allowed)

    def count_buffer(_: Any, __: str, buffer: Any) -> None:
        number = _count_elements(buffer)
        allowed = _FREE_BUFFER_NBYTES + 4 * nbytes
        count("buffer byte", number * buffer.element_size() if number else 0, allowed)

    def count_module(_: Any, __: str, ___: Any) -> None:
        count("module", 1, _FREE_MODULES + nbytes // _NBYTES_PER_MODULE)

    hooks = (
        registration.register_module_parameter_registration_hook(count_parameter),
        registration.register_module_buffer_registration_hook(count_buffer),
        registration.register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def count_weight_nbytes(folder: Location) -> int:
    """Return the bytes of the files of weights in a folder, 0 if there are none.

    Of many remote files a few are asked for, and stand for the others.
    """
    if not is_directory(folder):
        return 0
    names = _list_weight_files(folder)
    asked_names = names[:_MAX_ASKED] if isinstance(folder, RemotePath) else names
    nbytes = 0
    for name in asked_names:
        with open_source(folder / name) as source:
            nbytes += source.nbytes
    return nbytes * len(names) // max(1, len(asked_names))


def _list_weight_files(folder: Location) -> list[str]:
    """Return the names of a folder's files of weights, and of shards in folders below it."""
    file_names = list_file_names(folder)
    names = {name for name in file_names if name.endswith(_WEIGHT_SUFFIXES)}
    for index_name in filter(is_index_name, file_names):
        shards = list_shard_names(folder / index_name, DEFAULT_LIMITS)
        names |= {name for name in shards if "/" in name and path_exists(folder / name)}
    return sorted(names)


def _count_elements(tensor: Any) -> int:
    from torch import Tensor
    from torch.nn.parameter import is_lazy

    return tensor.numel() if isinstance(tensor, Tensor) and not is_lazy(tensor) else 0
