"""Quantised weights: against a module (CK219), incomplete, declared otherwise, or of a raw file."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.quantization.declaration import (
    compare_declaration,
    find_checkpoint_quantization,
)
from ckptool.compare.quantization.scheme import QuantizedLayer
from ckptool.compare.quantization.summary import (
    QuantizedGroup,
    format_schemes,
    format_sides,
    group_layers,
)
from ckptool.model import Checkpoint, QuantizationDeclaration, join_key, natural_sort_key
from ckptool.phrases import join_limited, pluralize, quote_code
from ckptool.rules.fixes.folder_code import format_config_code
from ckptool.rules.fixes.state_code import format_copy_code
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

QUANTIZATION_MISMATCH: Final = "CK219"
"""Code of the one finding for all keys of weights that one side has quantised."""
_MAX_LISTED: Final = 3


@check(
    ModuleDiff,
    Rule(
        code=QUANTIZATION_MISMATCH,
        name="quantisation-family-mismatch",
        level=Level.ERROR,
        summary="the file is {have} and the module {want}",
        detail="{count} of its modules differ, the first by `{key}`{misfit}",
        why=(
            "A quantised layer has different keys and dtypes than the float layer. With "
            "strict=False the float layer stays randomly initialised, or integers are loaded as "
            "weights. What packed integers stand for is decided by the library that wrote them, "
            "and only it builds the layers that take them."
        ),
        fix="The file and the module must be quantised in the same way. {remedy}.",
        general_advice=(
            "The file and the module must be quantised in the same way: quantise the module "
            "first, or load the unquantised file."
        ),
        example=(
            "model = nn.Sequential(nn.Linear(2, 2))\n"
            "quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})\n"
            "model.load_state_dict(quantised.state_dict())"
        ),
    ),
)
def find_quantization_mismatch(diff: ModuleDiff) -> Iterator[RuleHit]:
    quantization = diff.quantization
    if quantization is None or not (quantization.file_layers or quantization.module_layers):
        return
    keys = sorted(find_quantized_keys(diff), key=natural_sort_key)
    file_layers, module_layers = quantization.file_layers, quantization.module_layers
    layers = (*file_layers, *module_layers)
    remedy = (
        f"To load this file, {file_layers[0].scheme.remedy}"
        if file_layers
        else "Load the float file into the float module, and quantise that afterwards: "
        "module.load_state_dict(state_dict), then as the module is built now"
    )
    file_text, module_text = format_sides(quantization)
    yield hit(
        next(iter((file_layers or module_layers)[0].keys.values())),
        None,
        keys,
        have=file_text,
        want=module_text,
        count=len({layer.prefix for layer in layers}),
        misfit=_format_misfit(diff),
        remedy=remedy,
        keys=keys,
    )


def _format_misfit(diff: ModuleDiff) -> str:
    """Return what would not fit if the file were dequantised, as the rest of a sentence."""
    quantization = diff.quantization
    assert quantization is not None
    clauses = (
        ("has another number of elements than", quantization.misfit_keys),
        ("is not in any form in", quantization.absent_keys),
    )
    return "".join(
        f"; {join_limited(keys, _MAX_LISTED, quote_code)} {clause} the module"
        for clause, keys in clauses
        if keys
    )


def find_quantized_keys(diff: ModuleDiff) -> frozenset[str]:
    """Return the keys that do not match because of CK219; other rules skip them."""
    if diff.quantization is None:
        return frozenset()
    mismatched_keys = (change.key for change in diff.shape_mismatches)
    keys = (*diff.missing_keys, *diff.unexpected_keys, *mismatched_keys)
    return diff.quantization.explained_keys & {*keys}


@check(
    Checkpoint,
    Rule(
        code="CK235",
        name="incomplete-quantised-weight",
        level=Level.ERROR,
        summary="the quantised weight {what} ({scheme}) {lacks}",
        detail="{count} of {total} quantised weights of the file",
        why=(
            "A packed weight is meaningless without its scales: loaders that do not check use "
            "the integers, or unscaled 8-bit floats, as the weights."
        ),
        fix=("{remedy}"),
        general_advice=(
            "Copy the tensors from the file that it was converted from, or quantise again: a "
            "converter or a shard omitted them."
        ),
        example=(
            "state = {\n"
            '    "fc.qweight": torch.zeros(4, 8, dtype=torch.int32),\n'
            '    "fc.qzeros": torch.zeros(1, 1, dtype=torch.int32),\n'
            "}\n"
            "save_file(state, path)  # without fc.scales"
        ),
        explains_key=True,
    ),
)
def find_incomplete_layers(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    for state, info in find_checkpoint_quantization(checkpoint):
        broken_layers = [layer for layer in info.layers if not layer.is_complete]
        for group in group_layers(broken_layers):
            first = group.first
            yield hit(
                join_key(state.at, first.weight_key),
                Level.WARNING if first.is_probable else None,
                sorted(key for layer in group.layers for key in layer.lacking_keys),
                what=quote_code(join_key(state.at, group.pattern)),
                scheme=first.scheme.name,
                lacks=_format_lack(group),
                count=len(group.layers),
                total=len(info.layers),
                remedy=_advise_incomplete_group(group),
                lacking=[key for layer in group.layers for key in layer.lacking_keys],
            )


def _advise_incomplete_group(group: QuantizedGroup) -> str:
    if group.first.format.misfit:
        return "Take the file that it was converted from, or quantise again: tensors of two saves."
    keys = [key for layer in group.layers for key in layer.lacking_keys]
    code = format_copy_code(keys, "original")
    return (
        f"Copy the tensors from the file that it was converted from: {code}; or quantise again: a"
        " converter or a shard omitted them."
    )


def _format_lack(group: QuantizedGroup) -> str:
    """Return what the group's weights lack, or why their tensors do not fit."""
    first = group.first
    if first.format.misfit:
        return f"cannot be unpacked: {first.format.misfit}"
    names = join_limited(first.lacking_keys, _MAX_LISTED, quote_code)
    if first.is_probable:
        return f"has no {names} although other weights of the file do, unless it was only cast"
    return f"lacks {names}"


@check(
    Checkpoint,
    Rule(
        code="CK236",
        name="quantisation-config-contradicted",
        level=Level.ERROR,
        summary="{file} declares {declared}, and {found}",
        why=(
            "from_pretrained() and inference servers build the layers that the configuration "
            "next to the file declares, not those that the file contains."
        ),
        fix="{remedy}",
        general_advice=(
            "Put the quantization_config of the library that wrote this file into config.json, or "
            "use the weights that belong to it."
        ),
        example=(
            'save_file({"fc.weight": torch.ones(8, 8)}, "model.safetensors")\n'
            'config = {"model_type": "x", "quantization_config": {"quant_method": "gptq"}}\n'
            'Path("config.json").write_text(json.dumps(config))'
        ),
    ),
)
def find_contradicted_declaration(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    declaration = checkpoint.quantization_declaration
    if declaration is None:
        return
    comparison = compare_declaration(checkpoint, declaration)
    if comparison.contradiction:
        yield hit(
            "",
            None if declaration.method else Level.WARNING,
            file=declaration.file_name,
            declared=declaration.phrase or "no quantisation",
            found=comparison.contradiction,
            remedy=_advise_declaration(checkpoint, declaration, comparison.corrections),
        )


def _advise_declaration(
    checkpoint: Checkpoint,
    declaration: QuantizationDeclaration,
    corrections: Mapping[str, int] | None,
) -> str:
    """Return how to make the configuration that of the weights, in code if it is known."""
    if corrections is None or not declaration.place:
        return (
            "Put the quantization_config of the library that wrote this file into "
            f"{declaration.file_name}, or use the weights that belong to it."
        )
    purpose = "correct its numbers" if corrections else "remove its section on quantisation"
    code = format_config_code(checkpoint, declaration, corrections)
    return (
        f"Use the weights that belong to {declaration.file_name}. If these are the right ones, "
        f"{purpose}: {code}"
    )


@check(
    CheckpointDiff,
    Rule(
        code="CK237",
        name="quantised-form",
        level=Level.ERROR,
        summary="the {which} file is the quantised form of the other: {scheme}, {count}",
        detail="their values were not compared{misfit}",
        why=(
            "A quantised weight is stored in tensors with different names, shapes and dtypes. "
            "Code that loads one file strictly does not load the other. The library that wrote "
            "the quantised file unpacks it; ckptool does not."
        ),
        fix=(
            "To load the {which} file, {remedy}. No ckptool command converts one into the other: "
            "only the library that wrote the quantised file can unpack it."
        ),
        general_advice=(
            "Load the quantised file with the library that wrote it, for example "
            "from_pretrained() of transformers, or take the unquantised file. No ckptool command "
            "converts one into the other: only that library can unpack it."
        ),
        example=(
            'old = {"fc.weight": torch.ones(8, 8)}\n'
            "new = {\n"
            '    "fc.weight": torch.ones(8, 8).to(torch.float8_e4m3fn),\n'
            '    "fc.weight_scale_inv": torch.ones(1, 1),\n'
            "}"
        ),
    ),
)
def find_quantized_form(diff: CheckpointDiff) -> Iterator[RuleHit]:
    form = diff.quantized_form
    if form is None:
        return
    first = form.layers[0]
    misfit_clause = ""
    if form.misfit_keys:
        names = join_limited(form.misfit_keys, _MAX_LISTED, quote_code)
        misfit_clause = f"; not of one size in the two files: {names}"
    yield hit(
        first.weight_key,
        None,
        sorted(form.explained_keys, key=natural_sort_key),
        which="new" if form.is_new else "old",
        scheme=format_schemes(form.layers),
        count=pluralize(len(form.layers), "weight"),
        misfit=misfit_clause,
        remedy=first.scheme.remedy,
        weights=_list_weight_keys(form.layers),
    )


def _list_weight_keys(layers: Iterable[QuantizedLayer]) -> list[str]:
    return [layer.weight_key for layer in layers]
