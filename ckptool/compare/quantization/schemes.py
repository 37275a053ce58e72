"""The table of quantisation schemes: one scheme is one block of data; the first that fits counts.

Each layout is that of the library's own files: bitsandbytes 0.50, optimum-quanto 0.2.7, hqq 0.2.8,
torchao 0.18 and compressed-tensors 0.20 wrote the files that it was read from; GPTQ and AWQ are as
the layers of gptqmodel 7.7 and autoawq 0.2.9 register their buffers, the rest as transformers 5.24
and ComfyUI read theirs.
"""

from functools import partial
from typing import Final

from ckptool.compare.quantization.layouts import (
    claims_gptq,
    describe_awq,
    describe_bitsandbytes_4,
    describe_gptq,
    describe_hqq,
    describe_mxfp4_blocks,
    describe_pack_quantized,
    describe_packed_bytes,
    describe_quanto,
    describe_rows,
    describe_ternary,
    describe_torchao,
)
from ckptool.compare.quantization.scheme import NAME, Parts, QuantizationScheme, WeightFormat

_FLOAT8: Final = frozenset(
    {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"},
)
_INT8: Final = frozenset({"int8"})
_NARROW: Final = _FLOAT8 | _INT8
_BYTES: Final = frozenset({"uint8"})
_WORDS: Final = frozenset({"int32", "uint32"})
_SCALES: Final = frozenset({"float32", "float16", "bfloat16", "float64", "float8_e8m0fnu", "uint8"})
_ACTIVATIONS: Final = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "activation_scale",
    "input_scale_ub",
    f"{NAME}_activation_scale",
    "pre_quant_scale",
)
"""Scales of a layer's inputs and outputs."""
_CACHE_SCALES: Final = ("k_scale", "v_scale", "k_zero_point", "v_zero_point", "kv_scale")
"""Scales of keys and values in an attention's cache; they lie beside its projections."""


def _use_transformers(package: str) -> str:
    return (
        f"use from_pretrained() of transformers on its folder, with {package} installed, or take"
        " the unquantised file"
    )


def _claims_one_scale(parts: Parts) -> bool:
    return parts[f"{NAME}_scale"].numel == 1


def _describe_eetq(parts: Parts) -> WeightFormat:
    """Weight [in, out], transposed."""
    weight = parts[NAME]
    if weight.shape[1:] != parts[f"{NAME}_scales"].shape:
        return WeightFormat(misfit="weight and weight_scales are inconsistent")
    return WeightFormat(8, 0, "one scale per row", weight.shape[::-1], weight.numel)


def _describe_comfy(parts: Parts) -> WeightFormat:
    """Its scales may be padded and in tiles: only those of one element are described."""
    weight, scale = parts[NAME], parts[f"{NAME}_scale"]
    if weight.dtype in _NARROW and scale.numel == 1:
        return WeightFormat(8, 0, "one scale for the weight", weight.shape, weight.numel)
    return WeightFormat(8 if weight.dtype in _NARROW else 0)


EAGER: Final = QuantizationScheme(
    name="quantised by torch.ao.quantization",
    remedy=(
        "quantise the module in the same way first: torch.ao.quantization.quantize_dynamic(module, "
        "{torch.nn.Linear}), or prepare() and convert() with the same qconfig"
    ),
    file_keys=("scale", "zero_point"),  # of a QuantStub
    covers_layer=True,
)
OBSERVED: Final = QuantizationScheme(
    name="prepared for quantisation (observers, fake quantisation)",
    remedy=(
        "call prepare_qat() or prepare() with the same qconfig first: module.qconfig = "
        'torch.ao.quantization.get_default_qat_qconfig("fbgemm"); '
        "torch.ao.quantization.prepare_qat(module.train(), inplace=True)"
    ),
    covers_layer=True,
)
TORCHAO: Final = QuantizationScheme(
    name="torchao",
    remedy="call torchao.quantization.quantize_(module, ...) first",
    methods=("torchao",),
)

SCHEMES: Final = (
    QuantizationScheme(
        name="4-bit of bitsandbytes",
        remedy=(
            "use from_pretrained() of transformers on its folder, with bitsandbytes installed; it"
            " builds bitsandbytes.nn.Linear4bit (BitsAndBytesConfig(load_in_4bit=True))"
        ),
        required=(
            NAME,
            f"{NAME}.absmax",
            f"{NAME}.quant_map",
            f"{NAME}.quant_state.bitsandbytes__nf4|{NAME}.quant_state.bitsandbytes__fp4",
        ),
        optional=(f"{NAME}.nested_absmax", f"{NAME}.nested_quant_map"),
        markers=(
            f"{NAME}.absmax",
            f"{NAME}.quant_map",
            f"{NAME}.quant_state.bitsandbytes__nf4",
            f"{NAME}.quant_state.bitsandbytes__fp4",
            f"{NAME}.nested_absmax",
            f"{NAME}.nested_quant_map",
        ),
        describe_weight=describe_bitsandbytes_4,
        varies_in_settings=True,
        methods=("bitsandbytes",),
    ),
    QuantizationScheme(
        name="8-bit of bitsandbytes",
        remedy=(
            "use from_pretrained() of transformers on its folder, with bitsandbytes installed; it"
            " builds bitsandbytes.nn.Linear8bitLt (BitsAndBytesConfig(load_in_8bit=True))"
        ),
        required=(NAME, "SCB"),
        optional=(f"{NAME}_format",),
        markers=("SCB",),
        dtypes={NAME: _INT8},
        describe_weight=partial(describe_rows, NAME, "SCB"),
        methods=("bitsandbytes",),
    ),
    QuantizationScheme(
        name="GPTQ",
        remedy=_use_transformers("gptqmodel"),
        required=("qweight", "qzeros", "scales"),
        optional=("g_idx",),
        markers=("qweight", "qzeros", "g_idx"),
        dtypes={"qweight": _WORDS | {"int16"}},
        describe_weight=describe_gptq,
        claims=claims_gptq,
        methods=("gptq", "auto-round", "intel/auto-round"),
    ),
    QuantizationScheme(
        name="AWQ",
        remedy=_use_transformers("gptqmodel or autoawq"),
        required=("qweight", "qzeros", "scales"),
        markers=("qweight", "qzeros"),
        dtypes={"qweight": _WORDS | {"int16"}},
        describe_weight=describe_awq,
        methods=("awq", "auto-round", "intel/auto-round"),
    ),
    QuantizationScheme(
        name="SVDQuant",
        remedy="use the nunchaku library, which wrote it, or take the unquantised file",
        required=("qweight", "wscales"),
        optional=(
            "wzeros",
            "wcscales",
            "wtscale",
            "smooth",
            "smooth_orig",
            "smooth_factor",
            "smooth_factor_orig",
            "proj_down",
            "proj_up",
            "lora_down",
            "lora_up",
        ),
        markers=("wscales",),
    ),
    QuantizationScheme(
        name="Marlin",
        remedy=_use_transformers("gptqmodel"),
        required=("B", "s"),
        dtypes={"B": _WORDS},
        methods=("gptq", "marlin"),
    ),
    QuantizationScheme(
        name="compressed-tensors, packed",
        remedy=_use_transformers("compressed-tensors"),
        required=(f"{NAME}_packed", f"{NAME}_scale", f"{NAME}_shape"),
        optional=(f"{NAME}_zero_point", f"{NAME}_g_idx", *_ACTIVATIONS),
        markers=(f"{NAME}_packed",),
        dtypes={f"{NAME}_packed": _WORDS},
        describe_weight=describe_pack_quantized,
        methods=("compressed-tensors",),
        file_keys=_CACHE_SCALES,
    ),
    QuantizationScheme(
        name="NVFP4 of compressed-tensors",
        remedy=_use_transformers("compressed-tensors"),
        required=(f"{NAME}_packed", f"{NAME}_scale", f"{NAME}_global_scale"),
        optional=(f"{NAME}_zero_point", *_ACTIVATIONS),
        markers=(f"{NAME}_global_scale",),
        dtypes={f"{NAME}_packed": _BYTES},
        describe_weight=partial(describe_packed_bytes, f"{NAME}_packed", f"{NAME}_scale"),
        methods=("compressed-tensors",),
        file_keys=_CACHE_SCALES,
    ),
    QuantizationScheme(
        name="MXFP4 of compressed-tensors",
        remedy=_use_transformers("compressed-tensors"),
        required=(f"{NAME}_packed", f"{NAME}_scale"),
        optional=(f"{NAME}_zero_point", *_ACTIVATIONS),
        markers=(f"{NAME}_packed",),
        dtypes={f"{NAME}_packed": _BYTES, f"{NAME}_scale": _BYTES},
        describe_weight=partial(describe_packed_bytes, f"{NAME}_packed", f"{NAME}_scale"),
        methods=("compressed-tensors",),
        file_keys=_CACHE_SCALES,
    ),
    QuantizationScheme(
        name="MXFP4",
        remedy=_use_transformers("kernels"),
        required=(f"{NAME}_blocks", f"{NAME}_scales"),
        optional=(f"{NAME}_zero_point",),
        markers=(f"{NAME}_blocks",),
        dtypes={f"{NAME}_blocks": _BYTES, f"{NAME}_scales": _BYTES},
        describe_weight=describe_mxfp4_blocks,
        methods=("mxfp4",),
    ),
    QuantizationScheme(
        name="MXFP4",
        remedy=_use_transformers("kernels"),
        required=(f"{NAME}.blocks", f"{NAME}.scales"),
        markers=(f"{NAME}.blocks",),
        dtypes={f"{NAME}.blocks": _BYTES, f"{NAME}.scales": _BYTES},
        describe_weight=describe_mxfp4_blocks,
        methods=("mxfp4",),
    ),
    QuantizationScheme(
        name="quanto",
        remedy=(
            "use optimum.quanto.requantize() with the quantization map next to it, or"
            " from_pretrained() of transformers with optimum-quanto installed"
        ),
        required=(f"{NAME}._data|{NAME}._data._data", f"{NAME}._scale"),
        optional=(f"{NAME}._shift", "input_scale", "output_scale"),
        markers=(f"{NAME}._data", f"{NAME}._data._data", f"{NAME}._shift", f"{NAME}._scale"),
        describe_weight=describe_quanto,
        methods=("quanto",),
    ),
    QuantizationScheme(
        name="HQQ",
        remedy="use AutoHQQHFModel.from_quantized() of hqq, or take the unquantised file",
        required=("W_q", "scale|scale_q", "zero|zero_q"),
        optional=(
            "nbits",
            "group_size",
            "shape",
            "axis",
            "packing",
            "unpack_view_dtype",
            "view_as_float",
            "quant_scale",
            "quant_zero",
            "compute_dtype",
            "offload_meta",
            "encoded_state_dict",
            "stores_quant_config",
            "channel_wise",
            "optimize",
            "round_zero",
            "meta",
            "meta_scale",
            "meta_zero",
        ),
        markers=("W_q",),
        describe_weight=describe_hqq,
        varies_in_settings=True,
        methods=("hqq",),
    ),
    QuantizationScheme(
        name="torchao",
        remedy=(
            "use from_pretrained() of transformers with torchao installed, or"
            " torchao.prototype.safetensors.unflatten_tensor_state_dict() and a module quantised"
            " by torchao.quantization.quantize_()"
        ),
        required=(f"_{NAME}_qdata", f"_{NAME}_scale|_{NAME}_scale_and_zero"),
        optional=(
            f"_{NAME}_zero_point",
            f"_{NAME}_per_tensor_scale",
            f"_{NAME}_act_per_tensor_scale",
            f"_{NAME}_act_pre_scale",
            f"_{NAME}_act_quant_scale",
            f"_{NAME}_bitmask",
        ),
        markers=(f"_{NAME}_qdata",),
        describe_weight=describe_torchao,
        methods=("torchao",),
    ),
    QuantizationScheme(
        name="ComfyUI's scaled float8",
        remedy="load it with ComfyUI, or multiply each weight by its scale_weight first",
        required=(NAME, "scale_weight"),
        optional=("scale_input",),
        markers=("scale_weight",),
        dtypes={NAME: _FLOAT8},
        describe_weight=partial(describe_rows, NAME, "scale_weight"),
        file_keys=("scaled_fp8", "scale_weight", "scale_input"),
    ),
    QuantizationScheme(
        name="quantised for ComfyUI",
        remedy="load it with ComfyUI, or take the unquantised file",
        required=(NAME, f"{NAME}_scale", "comfy_quant"),
        optional=(f"{NAME}_scale_2", f"{NAME}_scalar", "input_scale", "pre_quant_scale"),
        markers=("comfy_quant",),
        describe_weight=_describe_comfy,
    ),
    QuantizationScheme(
        name="NVFP4 of ModelOpt",
        remedy="use vLLM, SGLang or TensorRT-LLM, or take the unquantised file",
        required=(NAME, f"{NAME}_scale", f"{NAME}_scale_2"),
        optional=_ACTIVATIONS,
        markers=(f"{NAME}_scale_2",),
        dtypes={NAME: _BYTES},
        describe_weight=partial(describe_packed_bytes, NAME, f"{NAME}_scale"),
        methods=("modelopt", "nvfp4"),
        file_keys=_CACHE_SCALES,
    ),
    QuantizationScheme(
        name="8-bit of EETQ",
        remedy=_use_transformers("eetq"),
        required=(NAME, f"{NAME}_scales"),
        dtypes={NAME: _INT8},
        describe_weight=_describe_eetq,
        methods=("eetq",),
    ),
    QuantizationScheme(
        name="BitNet",
        remedy="use from_pretrained() of transformers on its folder",
        required=(NAME, f"{NAME}_scale"),
        dtypes={NAME: _BYTES, f"{NAME}_scale": frozenset({"bfloat16", "float16", "float32"})},
        describe_weight=describe_ternary,
        claims=_claims_one_scale,
        methods=("bitnet",),
    ),
    QuantizationScheme(
        name="affine quantised for MLX or Metal",
        remedy="load it with mlx, or with from_pretrained() of transformers on a Mac",
        required=(NAME, "scales", "biases|qbiases"),
        dtypes={NAME: _WORDS},
        methods=("metal", "mlx"),
    ),
    QuantizationScheme(
        name="AQLM",
        remedy=_use_transformers("aqlm"),
        required=("codes", "codebooks", "scales"),
        methods=("aqlm",),
    ),
    QuantizationScheme(
        name="EXL2",
        remedy="load it with exllamav2, or take the unquantised file",
        required=("q_weight", "q_scale", "q_scale_max", "q_groups"),
        optional=("q_perm", "q_invperm", "q_group_map"),
        markers=("q_weight",),
        methods=("exl2",),
    ),
    QuantizationScheme(
        name="EXL3",
        remedy="load it with exllamav3, or take the unquantised file",
        required=("trellis", "suh|su", "svh|sv"),
        optional=("mcg", "mul1"),
        methods=("exl3",),
    ),
    *(
        QuantizationScheme(
            name=f"{kind} with scales",
            remedy=(
                "use from_pretrained() of transformers on its folder, or the library that wrote it;"
                " or multiply each weight by its scale first"
            ),
            required=(NAME, scale),
            optional=(f"{NAME}_zero_point", *_ACTIVATIONS),
            markers=(scale,) if scale.endswith("_scale_inv") else (),
            dtypes={NAME: dtypes, scale: _SCALES},
            describe_weight=partial(describe_rows, NAME, scale),
            methods=("fp8", "compressed-tensors", "fbgemm_fp8", "modelopt", "quark", "mxfp8"),
            file_keys=_CACHE_SCALES,
        )
        for kind, dtypes in (("float8", _FLOAT8), ("int8", _INT8))
        for scale in (f"{NAME}_scale_inv", f"{NAME}_scale", "scale")
    ),
)
"""All schemes that the names of several tensors show."""
