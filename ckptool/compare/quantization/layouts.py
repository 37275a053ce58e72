"""Tensors of one quantised weight -> WeightFormat: bits, groups and the shape before packing."""

from math import ceil, prod
from typing import Final

import msgspec

from ckptool.compare.quantization.scheme import NAME, Parts, WeightFormat
from ckptool.errors import ReadError
from ckptool.locations import RemotePath
from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.values.elements import iter_elements, unreadable_reason

_MAX_READ_NBYTES: Final = 4096
"""Bytes of a tensor of settings (a shape, a number of bits) up to which its values are read."""

Shape = tuple[int, ...]


def _read_settings(tensor: TensorInfo | None) -> bytes:
    """Return the bytes of a small local tensor of settings; b"" if it cannot be read so."""
    if tensor is None or tensor.nbytes > _MAX_READ_NBYTES or unreadable_reason(tensor):
        return b""
    span = tensor.span
    if span is None or isinstance(span.path, RemotePath):
        return b""
    try:
        return b"".join(iter_elements(tensor))
    except ReadError:
        return b""


def _read_integers(tensor: TensorInfo | None) -> tuple[int, ...]:
    """Return the values of a small tensor of integers; () if they cannot be read."""
    data = _read_settings(tensor)
    if tensor is None or not data or not tensor.dtype.startswith(("int", "uint")):
        return ()
    width = DTYPE_BITS[tensor.dtype] // 8
    is_signed = tensor.dtype.startswith("int")
    return tuple(
        int.from_bytes(data[start : start + width], "little", signed=is_signed)
        for start in range(0, len(data), width)
    )


def _build_grouped(bits: int, in_features: int, out_features: int, groups: int) -> WeightFormat:
    """Return the format of a weight [out, in] with `groups` scales for each row."""
    if bits not in range(1, 17) or not groups or not in_features:
        return WeightFormat(misfit="their sizes are inconsistent")
    group_size = ceil(in_features / groups)
    return WeightFormat(
        bits,
        group_size,
        "one scale per row" if groups == 1 else f"groups of {group_size:,}",
        (out_features, in_features),
        out_features * in_features,
    )


def _format_shape(shape: Shape) -> str:
    return str(list(shape))


def describe_gptq(parts: Parts) -> WeightFormat:
    """Describe qweight [in * bits / 32, out], scales [groups, out], qzeros [groups, ...]."""
    packed, scales, zeros = parts["qweight"], parts["scales"], parts["qzeros"]
    if len(packed.shape) != 2 or len(scales.shape) != 2 or packed.shape[1] != scales.shape[1]:
        return _build_misfit("qweight", packed, "scales", scales)
    if zeros.shape[:1] != scales.shape[:1] or not scales.shape[1]:
        return _build_misfit("qzeros", zeros, "scales", scales)
    (rows, out_features), word_bits = packed.shape, DTYPE_BITS[packed.dtype]
    order = parts.get("g_idx")
    if order is not None and order.numel:
        in_features = order.numel
        bits = rows * word_bits // in_features
        if not bits or ceil(in_features * bits / word_bits) != rows:
            return _build_misfit("qweight", packed, "g_idx", order)
    else:
        bits = prod(zeros.shape[1:]) * word_bits // out_features
        in_features = rows * word_bits // bits if bits else 0
    return _build_grouped(bits, in_features, out_features, scales.shape[0])


def claims_gptq(parts: Parts) -> bool:
    """Whether rows are packed: qweight is as wide as the scales, where AWQ packs columns."""
    packed, scales = parts["qweight"].shape, parts["scales"].shape
    return "g_idx" in parts or (len(packed) == len(scales) == 2 and packed[1] == scales[1])


def describe_awq(parts: Parts) -> WeightFormat:
    """Describe qweight [in, out * bits / 32], scales [groups, out]; gemv packs the other side."""
    packed, scales, zeros = parts["qweight"], parts["scales"], parts["qzeros"]
    if not len(packed.shape) == len(scales.shape) == len(zeros.shape) == 2 or not scales.numel:
        return _build_misfit("qweight", packed, "scales", scales)
    word_bits = DTYPE_BITS[packed.dtype]
    if zeros.shape == (scales.shape[0], packed.shape[1]) and packed.shape[1]:
        bits = packed.shape[1] * word_bits // scales.shape[1]
        return _build_grouped(bits, packed.shape[0], scales.shape[1], scales.shape[0])
    if packed.dtype == "int16" and zeros.shape == scales.shape:  # gemv_fast: rows in fours.
        out_features, in_features = scales.shape[1], packed.shape[1]
        return WeightFormat(4, 0, "groups", (out_features, in_features), out_features * in_features)
    if packed.shape[0] == scales.shape[0] == zeros.shape[0] and scales.shape[1]:
        bits = zeros.shape[1] * word_bits // scales.shape[1]
        in_features = packed.shape[1] * word_bits // bits if bits else 0
        # The width of the scales is padded: it bounds the size of a group, and does not say it.
        shape = (packed.shape[0], in_features)
        return WeightFormat(bits, 0, "groups", shape, prod(shape))
    return _build_misfit("qweight", packed, "scales", scales)


def describe_bitsandbytes_4(parts: Parts) -> WeightFormat:
    """Weight of bytes, two elements in each; absmax has a value for each block."""
    packed, absmax = parts[NAME], parts[f"{NAME}.absmax"]
    numel = 2 * packed.nbytes
    state = next((t for part, t in parts.items() if ".quant_state." in part), None)
    if absmax.dtype == "uint8" and f"{NAME}.nested_absmax" not in parts:
        return WeightFormat(misfit="absmax is quantised, but nested_absmax is missing")
    settings = _parse_quant_state(_read_settings(state))
    shape, block_size = settings or (None, _find_block_size(numel, absmax.numel))
    if shape is not None:
        numel = prod(shape)
    if (
        not block_size
        or ceil(numel / block_size) != absmax.numel
        or (numel + 1) // 2 > (packed.nbytes)
    ):
        return _build_misfit(NAME, packed, "absmax", absmax)
    return WeightFormat(4, block_size, f"blocks of {block_size:,}", shape, numel)


class _QuantState(msgspec.Struct, frozen=True):
    """Fields of bitsandbytes' JSON text that are used."""

    shape: tuple[int, ...]
    blocksize: int


def _parse_quant_state(data: bytes) -> tuple[Shape, int] | None:
    """Return shape and block size of the JSON text that bitsandbytes saves; None if it is none."""
    try:
        state = msgspec.json.decode(data, type=_QuantState)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    is_possible = state.blocksize > 0 and all(size >= 0 for size in state.shape)
    return (state.shape, state.blocksize) if is_possible else None


def describe_rows(part: str, scale_part: str, parts: Parts) -> WeightFormat:
    """Weight as it is, in `part`, with its scales in `scale_part`."""
    return _describe_scaled(parts[part], parts[scale_part])


def _describe_scaled(weight: TensorInfo, scale: TensorInfo) -> WeightFormat:
    """Weight in its own shape, one element in each; a scale for all, each row, group or block."""
    shape, bits = weight.shape, DTYPE_BITS[weight.dtype]
    scaling, group_size = _describe_scaling(shape, scale.shape)
    if not scaling:
        return _build_misfit("weight", weight, "scale", scale)
    return WeightFormat(bits, group_size, scaling, shape, weight.numel)


def _describe_scaling(shape: Shape, scale_shape: Shape) -> tuple[str, int]:
    """Return what shares a scale, and the size of groups within a row; ("", 0) if nothing fits."""
    if prod(scale_shape) == 1:
        return "one scale for the weight", 0
    stripped_shape = scale_shape
    while stripped_shape and stripped_shape[-1] == 1:
        stripped_shape = stripped_shape[:-1]
    if stripped_shape == shape[: len(stripped_shape)] and len(stripped_shape) < len(shape):
        is_row = len(stripped_shape) == len(shape) - 1
        return ("one scale per row" if is_row else "one scale per matrix"), 0
    is_alike = len(scale_shape) == len(shape) >= 2 and scale_shape[:-2] == shape[:-2]
    return _describe_blocks(shape, scale_shape) if is_alike else ("", 0)


def _describe_blocks(shape: Shape, scale_shape: Shape) -> tuple[str, int]:
    """Return what shares a scale where the last two dimensions are cut into blocks."""
    rows, columns = (_find_block_size(shape[i], scale_shape[i]) for i in (-2, -1))
    if not rows or not columns:
        return "", 0
    if rows == 1:
        return f"groups of {columns:,}", columns
    if columns == 1 and scale_shape[-2] == 1:
        return "one scale per column", 0
    return f"blocks of {rows:,} x {columns:,}", 0


def _find_block_size(size: int, count: int) -> int:
    """Return the size of blocks of which `count` cover `size`; 0 if none does.

    A power of two if one fits, since the last block may be smaller.
    """
    if not size or not 0 < count <= size:
        return 0
    if count == 1:
        return size
    block_size = 1
    while ceil(size / block_size) > count:
        block_size *= 2
    if ceil(size / block_size) == count:
        return block_size
    return size // count if size % count == 0 else 0


def describe_packed_bytes(part: str, scale_part: str, parts: Parts) -> WeightFormat:
    """Floats of 4 bits, two in a byte of `part`, with a scale for each group in `scale_part`."""
    packed, scale = parts[part], parts[scale_part]
    shape = (*packed.shape[:-1], 2 * packed.shape[-1]) if packed.shape else ()
    is_grouped = scale.shape[:-1] == shape[:-1] and scale.numel
    if not shape or not is_grouped or shape[-1] % scale.shape[-1]:
        return _build_misfit("weight", packed, "scale", scale)
    group_size = shape[-1] // scale.shape[-1]
    return WeightFormat(4, group_size, f"groups of {group_size:,}", shape, prod(shape))


def describe_mxfp4_blocks(parts: Parts) -> WeightFormat:
    """Describe blocks [..., groups, 16] of bytes with two elements each, scales [..., groups].

    transformers swaps the last two dimensions when it unpacks them, so that no shape is said.
    """
    blocks, scales = list(parts.values())[:2]
    if blocks.shape[:-1] != scales.shape or not blocks.shape:
        return _build_misfit("blocks", blocks, "scales", scales)
    group_size = 2 * blocks.shape[-1]
    return WeightFormat(4, group_size, f"groups of {group_size}", None, 2 * blocks.numel)


def describe_pack_quantized(parts: Parts) -> WeightFormat:
    """weight_packed [out, in * bits / 32] of int32; weight_shape says what `in` is."""
    packed, scale = parts[f"{NAME}_packed"], parts[f"{NAME}_scale"]
    shape = _read_integers(parts.get(f"{NAME}_shape"))
    if scale.shape[:1] != packed.shape[:1] or not packed.shape:
        return _build_misfit("weight_packed", packed, "weight_scale", scale)
    if len(shape) != 2 or min(shape) < 1:
        return WeightFormat(scaling="one scale per row" if scale.shape[1:] in {(), (1,)} else "")
    bits = packed.shape[-1] * DTYPE_BITS[packed.dtype] // shape[1]
    if shape[0] != packed.shape[0]:
        return _build_misfit("weight_packed", packed, "weight_shape", parts[f"{NAME}_shape"])
    return _build_grouped(bits, shape[1], shape[0], prod(scale.shape[1:]))


def describe_quanto(parts: Parts) -> WeightFormat:
    """_data in the weight's shape, or packed in rows of one group each, with a _shift beside."""
    scale = parts[f"{NAME}._scale"]
    if weight := parts.get(f"{NAME}._data"):
        return _describe_scaled(weight, scale)
    packed = parts[f"{NAME}._data._data"]
    if len(packed.shape) != 2 or scale.shape[:1] == () or not scale.shape[0]:
        return _build_misfit("_data", packed, "_scale", scale)
    rows, columns = scale.shape[0], packed.shape[1]
    bits = packed.shape[0] * 8 // rows
    if bits not in {1, 2, 4} or ceil(rows * bits / 8) != packed.shape[0]:
        return _build_misfit("_data", packed, "_scale", scale)
    return WeightFormat(bits, columns, f"groups of {columns:,}", None, rows * columns)


def describe_hqq(parts: Parts) -> WeightFormat:
    """W_q in groups; the settings beside it say the rest, where they can be read."""
    bits, group_size = (
        next(iter(_read_integers(parts.get(n))), 0) for n in ("nbits", "group_size")
    )
    shape = _read_integers(parts.get("shape")) or None
    scale = parts.get("scale")
    packed = parts["W_q"]
    is_rows = scale is not None and len(packed.shape) == 2 and scale.shape[1:] == (1,)
    if scale is not None and is_rows and scale.shape[0]:  # axis=1: a row of W_q is of one group.
        group_size = group_size or packed.shape[1]
        bits = bits or DTYPE_BITS[packed.dtype] * packed.shape[0] // scale.shape[0]
    numel = prod(shape) if shape else 0
    if scale is not None and numel and group_size > 0 and scale.numel * group_size != numel:
        return _build_misfit("W_q", packed, "scale", scale)
    scaling = f"groups of {group_size:,}" if group_size > 0 else ""
    return WeightFormat(bits, max(0, group_size), scaling, shape, numel)


def describe_torchao(parts: Parts) -> WeightFormat:
    """Describe qdata in the weight's shape, or packed: int8 may hold narrower integers."""
    data, scale = parts[f"_{NAME}_qdata"], parts.get(f"_{NAME}_scale")
    if scale is None or not data.dtype.startswith(("float8", "int8")):
        return WeightFormat()
    scaling, group_size = _describe_scaling(data.shape, scale.shape)
    if not scaling:
        return WeightFormat()
    bits = 8 if data.dtype.startswith("float8") else 0
    return WeightFormat(bits, group_size, scaling, data.shape, data.numel)


def describe_ternary(parts: Parts) -> WeightFormat:
    """Four elements in a byte of the first dimension, one scale."""
    packed = parts[NAME]
    shape = (4 * packed.shape[0], *packed.shape[1:]) if packed.shape else ()
    return WeightFormat(2, 0, "one scale for the weight", shape, prod(shape))


def _build_misfit(first: str, a: TensorInfo, second: str, b: TensorInfo) -> WeightFormat:
    names = f"{first.replace(NAME, 'weight')} {_format_shape(a.shape)}"
    return WeightFormat(misfit=f"{names} and {second} {_format_shape(b.shape)} are inconsistent")
