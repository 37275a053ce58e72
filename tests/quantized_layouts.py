"""Tensors of one layer as each library stores its quantised weight, made without the library.

How the layouts were established: bitsandbytes 0.50.2 (Linear4bit nf4 and fp4, Linear8bitLt),
optimum-quanto 0.2.7 (qint8, qint4, qint2, qfloat8), hqq 0.2.8 (1 to 8 bits), torchao 0.18
(flatten_tensor_state_dict of Int8, Float8 and Intx weights) and compressed-tensors 0.20 (presets
W4A16, W4A16_ASYM, W8A16, W8A8, FP8, FP8_DYNAMIC, FP8_BLOCK, NVFP4, NVFP4A16, MXFP4) quantised a
small Linear on a CPU, and keys, dtypes and shapes of its state_dict were taken down. GPTQ and AWQ
are the buffers that the layers of gptqmodel 7.7 and autoawq 0.2.9 register; DeepSeek's and
FBGEMM's float8, EETQ, BitNet, MXFP4 and MLX those of the layers of transformers 5.24; ComfyUI's
are of its QUANTIZATION.md and of its converters. The values are not those of a quantiser: no test
computes with them.
"""

import json
import math
from collections.abc import Callable

import torch

Tensors = dict[str, torch.Tensor]
F8 = torch.float8_e4m3fn


def fill(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a tensor whose values differ and are those of no float weight."""
    values = torch.arange(1, math.prod(shape) + 1).remainder(100).reshape(shape)
    return (values / 128).to(dtype) if dtype.is_floating_point else values.to(dtype)


def bitsandbytes_4(out: int, size: int, kind: str = "nf4", nested: bool = True) -> Tensors:
    blocks = out * size // 64
    state: dict[str, object] = {
        "quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [out, size],
    }  # fmt: skip
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.087}
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return {
        "weight": fill(out * size // 2, 1, dtype=torch.uint8),
        "weight.absmax": fill(blocks, dtype=torch.uint8 if nested else torch.float32),
        "weight.quant_map": fill(16),
        **({"weight.nested_absmax": fill(math.ceil(blocks / 256))} if nested else {}),
        **({"weight.nested_quant_map": fill(256)} if nested else {}),
        f"weight.quant_state.bitsandbytes__{kind}": text,
    }


def bitsandbytes_8(out: int, size: int) -> Tensors:
    return {
        "weight": fill(out, size, dtype=torch.int8),
        "SCB": fill(out),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def gptq(out: int, size: int, bits: int = 4, group: int = 32) -> Tensors:
    groups = math.ceil(size / group)
    return {
        "qweight": fill(math.ceil(size * bits / 32), out, dtype=torch.int32),
        "qzeros": fill(groups, math.ceil(out * bits / 32), dtype=torch.int32),
        "scales": fill(groups, out, dtype=torch.float16),
        "g_idx": torch.arange(size, dtype=torch.int32) // group,
    }


def gptq_without_order(out: int, size: int) -> Tensors:
    return {name: tensor for name, tensor in gptq(out, size).items() if name != "g_idx"}


def awq(out: int, size: int, group: int = 32) -> Tensors:
    return {
        "qweight": fill(size, out // 8, dtype=torch.int32),
        "qzeros": fill(size // group, out // 8, dtype=torch.int32),
        "scales": fill(size // group, out, dtype=torch.float16),
    }


def awq_gemv(out: int, size: int) -> Tensors:
    width = math.ceil(size // 32 / 8)
    return {
        "qweight": fill(out, size // 8, dtype=torch.int32),
        "qzeros": fill(out, width, dtype=torch.int32),
        "scales": fill(out, width * 8, dtype=torch.float16),
    }


def pack_quantized(out: int, size: int, bits: int = 4, group: int = 32) -> Tensors:
    return {
        "weight_packed": fill(out, math.ceil(size * bits / 32), dtype=torch.int32),
        "weight_scale": fill(out, size // group, dtype=torch.bfloat16),
        "weight_shape": torch.tensor([out, size]),
    }


def pack_quantized_asymmetric(out: int, size: int) -> Tensors:
    zeros = fill(out // 8, size // 32, dtype=torch.int32)
    return {**pack_quantized(out, size), "weight_zero_point": zeros}


def int8_scaled(out: int, size: int) -> Tensors:
    weight = fill(out, size, dtype=torch.int8)
    return {"weight": weight, "weight_scale": fill(out, 1, dtype=torch.bfloat16)}


def float8_static(out: int, size: int) -> Tensors:
    return {
        "weight": fill(out, size, dtype=F8),
        "weight_scale": fill(1, dtype=torch.bfloat16),
        "input_scale": fill(1, dtype=torch.bfloat16),
    }


def float8_rows(out: int, size: int) -> Tensors:
    return {"weight": fill(out, size, dtype=F8), "weight_scale": fill(out, 1)}


def float8_blocks(out: int, size: int, block: int = 16) -> Tensors:
    scale = fill(math.ceil(out / block), math.ceil(size / block))
    return {"weight": fill(out, size, dtype=F8), "weight_scale_inv": scale}


def nvfp4(out: int, size: int) -> Tensors:
    return {
        "weight_packed": fill(out, size // 2, dtype=torch.uint8),
        "weight_scale": fill(out, size // 16, dtype=F8),
        "weight_global_scale": fill(1),
        "input_global_scale": fill(1),
    }


def modelopt_nvfp4(out: int, size: int) -> Tensors:
    return {
        "weight": fill(out, size // 2, dtype=torch.uint8),
        "weight_scale": fill(out, size // 16, dtype=F8),
        "weight_scale_2": fill(1).reshape(()),
        "input_scale": fill(1).reshape(()),
    }


def mxfp4_packed(out: int, size: int) -> Tensors:
    return {
        "weight_packed": fill(out, size // 2, dtype=torch.uint8),
        "weight_scale": fill(out, size // 32, dtype=torch.uint8),
    }


def mxfp4_blocks(out: int, size: int) -> Tensors:
    return {
        "weight_blocks": fill(out, size // 32, 16, dtype=torch.uint8),
        "weight_scales": fill(out, size // 32, dtype=torch.uint8),
    }


def mxfp4_dotted(out: int, size: int) -> Tensors:
    return {name.replace("_", "."): tensor for name, tensor in mxfp4_blocks(out, size).items()}


def quanto_8(out: int, size: int) -> Tensors:
    return {
        "weight._data": fill(out, size, dtype=torch.int8),
        "weight._scale": fill(out, 1),
        "input_scale": torch.tensor(1.0),
        "output_scale": torch.tensor(1.0),
    }


def quanto_4(out: int, size: int) -> Tensors:
    return {
        "weight._data._data": fill(out // 2, size, dtype=torch.uint8),
        "weight._scale": fill(out, 1),
        "weight._shift": fill(out, 1),
        "input_scale": torch.tensor(1.0),
        "output_scale": torch.tensor(1.0),
    }


def hqq(out: int, size: int, bits: int = 4, group: int = 32) -> Tensors:
    rows = out * size // group

    def encode(text: str) -> torch.Tensor:
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    flags = (
        "view_as_float", "quant_scale", "quant_zero", "offload_meta", "encoded_state_dict",
        "stores_quant_config", "channel_wise", "optimize", "round_zero",
    )  # fmt: skip
    return {
        "W_q": fill(rows * bits // 8, group, dtype=torch.uint8),
        "nbits": torch.tensor(bits, dtype=torch.int32),
        "group_size": torch.tensor(group, dtype=torch.int32),
        "shape": torch.tensor([out, size]),
        "scale": fill(rows, 1),
        "zero": fill(rows, 1),
        "axis": torch.tensor(1, dtype=torch.int32),
        "packing": encode("4bit_u8"),
        "unpack_view_dtype": encode("torch.uint8"),
        "compute_dtype": encode("torch.float32"),
        **{name: torch.tensor(0, dtype=torch.uint8) for name in flags},
    }


def torchao_float8(out: int, size: int) -> Tensors:
    return {"_weight_qdata": fill(out, size, dtype=F8), "_weight_scale": fill(out, 1)}


def torchao_int8(out: int, size: int) -> Tensors:
    return {
        "_weight_qdata": fill(out, size, dtype=torch.int8),
        "_weight_scale": fill(out, 1),
        "_weight_zero_point": fill(out, 1, dtype=torch.int8),
    }


def comfy_scaled(out: int, size: int) -> Tensors:
    return {
        "weight": fill(out, size, dtype=F8),
        "scale_weight": fill(1).reshape(()),
        "scale_input": fill(1).reshape(()),
    }


def comfy_quant(out: int, size: int) -> Tensors:
    text = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    scale = fill(1).reshape(())
    return {"weight": fill(out, size, dtype=F8), "weight_scale": scale, "comfy_quant": text}


def eetq(out: int, size: int) -> Tensors:
    scales = fill(out, dtype=torch.float16)
    return {"weight": fill(size, out, dtype=torch.int8), "weight_scales": scales}


def bitnet(out: int, size: int) -> Tensors:
    scale = fill(1, dtype=torch.bfloat16)
    return {"weight": fill(out // 4, size, dtype=torch.uint8), "weight_scale": scale}


def mlx(out: int, size: int) -> Tensors:
    return {
        "weight": fill(out, size // 8, dtype=torch.int32).view(torch.uint32),
        "scales": fill(out, size // 32, dtype=torch.float16),
        "biases": fill(out, size // 32, dtype=torch.float16),
    }


LAYOUTS: dict[str, tuple[Callable[[int, int], Tensors], str, int, str]] = {
    "bitsandbytes nf4": (bitsandbytes_4, "4-bit of bitsandbytes", 4, "blocks of 64"),
    "bitsandbytes fp4": (
        lambda out, size: bitsandbytes_4(out, size, "fp4", nested=False),
        "4-bit of bitsandbytes", 4, "blocks of 64",
    ),
    "bitsandbytes int8": (bitsandbytes_8, "8-bit of bitsandbytes", 8, "one scale per row"),
    "gptq": (gptq, "GPTQ", 4, "groups of 32"),
    "gptq 8 bits": (lambda out, size: gptq(out, size, 8), "GPTQ", 8, "groups of 32"),
    "gptq 3 bits": (lambda out, size: gptq(out, size, 3), "GPTQ", 3, "groups of 32"),
    "gptq without g_idx": (gptq_without_order, "GPTQ", 4, "groups of 32"),
    "awq": (awq, "AWQ", 4, "groups of 32"),
    "awq gemv": (awq_gemv, "AWQ", 4, "groups"),
    "pack-quantized": (pack_quantized, "compressed-tensors, packed", 4, "groups of 32"),
    "pack-quantized 8 bits": (
        lambda out, size: pack_quantized(out, size, 8),
        "compressed-tensors, packed", 8, "groups of 32",
    ),
    "pack-quantized, zero points": (
        pack_quantized_asymmetric, "compressed-tensors, packed", 4, "groups of 32"
    ),
    "int8": (int8_scaled, "int8 with scales", 8, "one scale per row"),
    "float8 static": (float8_static, "float8 with scales", 8, "one scale for the weight"),
    "float8 by row": (float8_rows, "float8 with scales", 8, "one scale per row"),
    "float8 by block": (float8_blocks, "float8 with scales", 8, "blocks of 16 x 16"),
    "nvfp4": (nvfp4, "NVFP4 of compressed-tensors", 4, "groups of 16"),
    "nvfp4 of modelopt": (modelopt_nvfp4, "NVFP4 of ModelOpt", 4, "groups of 16"),
    "mxfp4 packed": (mxfp4_packed, "MXFP4 of compressed-tensors", 4, "groups of 32"),
    "mxfp4": (mxfp4_blocks, "MXFP4", 4, "groups of 32"),
    "mxfp4 of gpt-oss": (mxfp4_dotted, "MXFP4", 4, "groups of 32"),
    "quanto int8": (quanto_8, "quanto", 8, "one scale per row"),
    "quanto int4": (quanto_4, "quanto", 4, "groups of 256"),
    "hqq": (hqq, "HQQ", 4, "groups of 32"),
    "hqq 2 bits": (lambda out, size: hqq(out, size, 2), "HQQ", 2, "groups of 32"),
    "torchao float8": (torchao_float8, "torchao", 8, "one scale per row"),
    "torchao int8": (torchao_int8, "torchao", 0, "one scale per row"),
    "comfyui scaled": (comfy_scaled, "ComfyUI's scaled float8", 8, "one scale for the weight"),
    "comfyui": (comfy_quant, "quantised for ComfyUI", 8, "one scale for the weight"),
    "eetq": (eetq, "8-bit of EETQ", 8, "one scale per row"),
    "bitnet": (bitnet, "BitNet", 2, "one scale for the weight"),
    "mlx": (mlx, "affine quantised for MLX or Metal", 0, ""),
}  # fmt: skip
"""Name -> (tensors of a Linear(size, out), scheme, bits, what shares a scale)."""


def quantize_state(state: Tensors, layout: str) -> Tensors:
    """Return the state with each two-dimensional `weight` in a layout; the rest as it is."""
    build = LAYOUTS[layout][0]
    quantized: Tensors = {}
    for key, tensor in state.items():
        prefix, _, name = key.rpartition(".")
        if name == "weight" and tensor.dim() == 2:
            parts = build(*tensor.shape)
            quantized |= {f"{prefix}.{part}" if prefix else part: t for part, t in parts.items()}
        else:
            quantized[key] = tensor
    return quantized
