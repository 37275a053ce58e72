"""ModuleDiff -> hits: versions of classes that the file lacks (CK216)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.load_outcome import LoadStepKind
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import ModuleClass
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

_UPGRADE_FILLED_NAMES: Final = {"num_batches_tracked": 2}
"""Names that torch's upgrade hook fills in -> first class version that saves them."""
_NORM_LOADING_CLASSES: Final = {
    "torch.nn.modules.batchnorm._NormBase",
    "torch.nn.modules.instancenorm._InstanceNorm",
}
"""Classes whose upgrade hook concerns nothing but `_UPGRADE_FILLED_NAMES`."""
_PLAIN_LOADING_CLASS: Final = "torch.nn.modules.module.Module"


@check(
    ModuleDiff,
    Rule(
        code="CK216",
        name="version-metadata-missing",
        level=Level.ERROR,
        summary="the file has no version metadata for {whose} ({owner}, now version {version})",
        detail="{effect}",
        why=(
            "A state_dict carries class versions in _metadata. dict(sd), a comprehension, "
            "safetensors and torch.distributed.checkpoint drop them, and upgrade code then "
            "treats the file as an old one."
        ),
        fix=(
            "Save module.state_dict() itself. If the file was saved by the current code, restore "
            "the versions before loading: state_dict = collections.OrderedDict(state_dict); "
            "state_dict._metadata = module.state_dict()._metadata"
        ),
        example=(
            "state = dict(nn.BatchNorm1d(2).state_dict())  # no _metadata any more\n"
            "nn.BatchNorm1d(2).load_state_dict(state)"
        ),
    ),
)
def find_missing_version_metadata(diff: ModuleDiff) -> Iterator[RuleHit]:
    has_versions = diff.state.versions is not None or diff.state.role == "module"
    if has_versions or diff.loading_info is not None:  # such a loader passes no versions on
        return
    file_keys = {*diff.state.tensors, *(diff.rewrite.key_map.values() if diff.rewrite else ())}
    file_keys |= {key for group in diff.rename_groups for key in group.pairs.values()}
    for prefix, module_class in diff.module.modules.items():
        if module_class.has_custom_load and (module_class.version or 1) == 1:
            effect = "its own loading code receives no version, which usually has the same effect"
            yield _build_version_hit(prefix, Level.NOTE, module_class.name, 1, effect)
        elif module_class.has_custom_load:
            level = _choose_upgrade_level(diff)
            effect = "its own loading code runs as for version 1"
            if level is Level.WARNING:
                effect += ", and copies every tensor unchanged"
            yield _build_version_hit(prefix, level, module_class.name, module_class.version, effect)
        elif (module_class.version or 1) > 1 and module_class.loading_class != _PLAIN_LOADING_CLASS:
            yield from _find_torch_upgrade(diff, prefix, module_class, file_keys)


def _choose_upgrade_level(diff: ModuleDiff) -> Level | None:
    """Return the level for loading code that was asked and changes no value; None where it may.

    What else the code sets in the module is not looked at: a file that nothing was upgraded in is
    a warning, one whose keys were renamed is an old file.
    """
    changes_values = any(
        step.kind in {LoadStepKind.COMPUTED, LoadStepKind.PARTIAL}
        or (step.kind in {LoadStepKind.PERMUTED, LoadStepKind.SLICED} and not step.file_key)
        for step in diff.load_steps
    )
    if not diff.loads_whole or changes_values:
        return None
    if any(step.file_key for step in diff.load_steps):
        return Level.NOTE
    return None if diff.load_steps else Level.WARNING


def _find_torch_upgrade(
    diff: ModuleDiff, prefix: str, module_class: ModuleClass, file_keys: set[str]
) -> Iterator[RuleHit]:
    """Yield the hit for one of torch's own classes: NOTE if its upgrade code has no effect.

    None if there is no tensor on which it could have one.

    `file_keys` are those of the file, and those that they are renamed to.
    """
    dotted_prefix = f"{prefix}." if prefix else ""
    saved_keys = diff.module.saved_tensors.keys()
    expected_names = [
        name for name in _UPGRADE_FILLED_NAMES if f"{dotted_prefix}{name}" in saved_keys
    ]
    filled_names = [name for name in expected_names if f"{dotted_prefix}{name}" not in file_keys]
    level: Level | None = Level.NOTE
    if filled_names:
        effect = f"{', '.join(filled_names)} is set to 0 instead of reported missing"
        # Asked, the loader said so itself: it loads, and only the count of batches starts again.
        level = Level.NOTE if diff.load_outcome is not None and diff.is_strict else None
    elif expected_names:
        effect = "harmless here, because the file has the keys that the upgrade would fill in"
    elif module_class.loading_class in _NORM_LOADING_CLASSES or not any(
        key.startswith(dotted_prefix) for key in saved_keys
    ):
        return
    else:
        level = _choose_upgrade_level(diff)
        effect = "torch's upgrade for version 1 runs on it"
        if level is Level.WARNING:
            effect += ", and copies every tensor unchanged"
    yield _build_version_hit(prefix, level, module_class.name, module_class.version, effect)


def _build_version_hit(
    prefix: str, level: Level | None, owner: str, version: int | None, effect: str
) -> RuleHit:
    whose = label_module(prefix)
    return hit(prefix, level, whose=whose, owner=owner, version=version, effect=effect)


def label_module(prefix: str) -> str:
    return f"`{prefix}`" if prefix else "the module"
