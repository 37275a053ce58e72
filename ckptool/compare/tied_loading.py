"""Ties of a module x names of a file -> why `safetensors.torch.load_model` refuses it, or "".

That loader takes every name but one of each group of tied names for one that the file leaves out.
It raises where a second one is in the file, where torch's own upgrade fills one in, so that it is
not missing, and where no tensor of a group covers its storage.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.phrases import quote_code


def find_load_model_refusal(
    module_tensors: Mapping[str, TensorInfo],
    file_keys: Collection[str],
    missing_keys: Iterable[str],
    unexpected_keys: Collection[str],
) -> str:
    """Return why `load_model(strict=True)` raises, "" if it loads.

    Args:
        module_tensors: the tensors of the module's state_dict().
        file_keys: the keys of the file.
        missing_keys: what `load_state_dict(strict=False)` of the file returns as missing.
        unexpected_keys: what it returns as unexpected.
    """
    missing = set(missing_keys)
    for group in _iter_shared_groups(module_tensors.values()):
        complete_names = sorted(tensor.key for tensor in group if _is_complete(tensor))
        if not complete_names:
            return f"no name of {quote_code(group[0].key)} covers its storage"
        kept_name = next((name for name in complete_names if name in file_keys), complete_names[0])
        for name in sorted(tensor.key for tensor in group):
            if name == kept_name:
                continue
            if name not in missing:
                return f"it expects no {quote_code(name)}, which is tied to {quote_code(kept_name)}"
            missing.remove(name)
    if missing:
        return f"{quote_code(min(missing))} is missing"
    return f"{quote_code(min(unexpected_keys))} is unexpected" if unexpected_keys else ""


def _iter_shared_groups(tensors: Iterable[TensorInfo]) -> Iterator[Sequence[TensorInfo]]:
    """Yield the tensors of each storage that overlap, alone or several, as safetensors does."""
    by_storage: dict[object, list[TensorInfo]] = {}
    for tensor in tensors:
        if tensor.storage is not None and tensor.storage.nbytes:
            by_storage.setdefault(tensor.storage, []).append(tensor)
    for shared in by_storage.values():
        shared.sort(key=lambda tensor: (*_get_extent(tensor), tensor.key))
        group: list[TensorInfo] = []
        last_stop = 0
        for tensor in shared:
            start, stop = _get_extent(tensor)
            if group and start >= last_stop:
                yield group
                group = []
            group.append(tensor)
            last_stop = stop
        yield group


def _get_extent(tensor: TensorInfo) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one after its last."""
    nbytes = DTYPE_BITS.get(tensor.dtype, 8) // 8
    return tensor.storage_offset * nbytes, (tensor.storage_offset + tensor.numel) * nbytes


def _is_complete(tensor: TensorInfo) -> bool:
    storage = tensor.storage
    return storage is not None and not tensor.storage_offset and tensor.nbytes == storage.nbytes
