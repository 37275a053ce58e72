"""ModuleInfo, ModuleDiff, Verification -> hits: what a framework's loader does (CK227-CK229)."""

from collections.abc import Iterator, Mapping
from typing import Final

from ckptool.compare.load_outcome import LoadStepKind
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import ModuleInfo
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit
from ckptool.verification.result import Verification

UNINITIALIZED_BUFFER: Final = "CK227"
"""Code of findings about buffers that a framework's loader leaves uninitialized."""


@check(
    ModuleInfo,
    Rule(
        code=UNINITIALIZED_BUFFER,
        name="buffer-left-uninitialized",
        level=Level.ERROR,
        summary="`{key}` contains uninitialised memory after {loader}",
        detail="the module is built on meta there, and no code fills the buffer afterwards",
        why=(
            "from_pretrained() of transformers builds on the meta device, gives each buffer with "
            "persistent=False new memory, and calls _init_weights(). What the constructor "
            "computed is lost: the model runs with whatever was in that memory, without an error."
        ),
        general_advice=(
            "Fill it in _init_weights(), for example init.copy_(module.NAME, ...); or save its "
            'value: register_buffer("NAME", ...) without persistent=False, and save the checkpoint '
            "again."
        ),
        fix=(
            "Fill it in _init_weights(), for example init.copy_(module.{name}, ...); or save its"
            " value: register_buffer({name:py}, ...) without persistent=False, and save the"
            " checkpoint again."
        ),
        example=(
            "class Net(PreTrainedModel):\n"
            "    def __init__(self, config):\n"
            "        super().__init__(config)\n"
            '        self.register_buffer("freq", torch.arange(4) / 4, persistent=False)\n'
            "        self.post_init()"
        ),
    ),
)
def find_uninitialized_buffers(module_info: ModuleInfo) -> Iterator[RuleHit]:
    yield from _iter_uninitialized(module_info.uninitialized_buffers)


@check_other_subject(Verification, UNINITIALIZED_BUFFER)
def find_uninitialized_after_verification(verification: Verification) -> Iterator[RuleHit]:
    yield from _iter_uninitialized(verification.uninitialized_buffers)


def _iter_uninitialized(buffers: Mapping[str, str]) -> Iterator[RuleHit]:
    for key, loader in buffers.items():
        yield hit(key, loader=loader, name=key.rpartition(".")[2])


@check(
    ModuleDiff,
    Rule(
        code="CK228",
        name="key-ignored-by-loader",
        level=Level.NOTE,
        summary="`{key}` is in the file, and {loader} drops it without reporting it",
        why=(
            "A class may list keys that its loader omits from its report: old buffers that are "
            "computed today, or tied weights. If the value in the file differs from the one the "
            "module computes, it is lost."
        ),
        fix="Nothing, if the module computes the same value; to remove it from the file: "
        "state_dict.pop({key:py}). Otherwise load it yourself.",
        example='AutoModel.from_pretrained(folder)  # an old file with "rotary_emb.inv_freq"',
    ),
)
def find_ignored_keys(diff: ModuleDiff) -> Iterator[RuleHit]:
    report = diff.loading_info
    if report is None or report.error:
        return
    for step in diff.load_steps:
        if step.kind is LoadStepKind.DISCARDED:
            yield hit(step.key, loader=report.loader)


@check(
    ModuleDiff,
    Rule(
        code="CK229",
        name="weights-of-a-variant-alone",
        level=Level.NOTE,
        summary="the weights are of variant `{variant}` alone: without it, from_pretrained() finds"
        " none",
        why=(
            "save_pretrained(variant=...) gives files a name that from_pretrained() looks for only"
            " where the same variant is asked for. It does not choose the dtype by itself."
        ),
        fix="Load with {loader}, or save without a variant.",
        example='model.save_pretrained(folder, variant="fp16")',
    ),
)
def find_variant_alone(diff: ModuleDiff) -> Iterator[RuleHit]:
    report = diff.loading_info
    if report is not None and report.variant:
        yield hit("", variant=report.variant, loader=report.loader)
