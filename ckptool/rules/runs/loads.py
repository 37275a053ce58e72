"""LoadSite -> hits: what the loads of a traced run did (CK230-CK234, CK238)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ckptool.model import Checkpoint, Container, Kind
from ckptool.phrases import (
    join_limited,
    pluralize,
    quote_code,
    quote_python,
    quote_shell,
    summarize_message,
)
from ckptool.rules.fixes.commands import name_result
from ckptool.rules.fixes.rewrite_code import format_rewrite_code, list_rewrite_steps
from ckptool.rules.fixes.run_fixes import format_attribute_fix, name_command_file
from ckptool.rules.fixes.state_code import format_tie_code
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit
from ckptool.tracing.merge import LoadSite
from ckptool.tracing.records import LoadRecord, UnsavedValue

_MAX_LISTED: Final = 3
_KIND_TEXTS: Final = {
    str(Kind.NON_PERSISTENT_BUFFER): "a buffer with persistent=False",
    str(Kind.CONTAINER): "in a plain container",
    str(Kind.ARRAY): "a NumPy array",
    str(Kind.MODULE): "in a module that is not registered",
    str(Kind.CLASS_ATTRIBUTE): "an attribute of the class",
    "value": "a plain Python value",
}
_OUTCOMES: Final = {
    True: "the process ended",
    False: "the script went on",
    None: "it is not known whether the script went on",
}
_BUFFER_KINDS: Final = frozenset({str(Kind.NON_PERSISTENT_BUFFER)})


@check(
    LoadSite,
    Rule(
        code="CK230",
        name="load-left-keys-out",
        level=Level.WARNING,
        summary="{module} was loaded without {count}: {keys}",
        detail="{cause}, and {loader} did not raise{at}",
        why=(
            "strict=False turns a missing key into a return value that few scripts read. The "
            "module trains or predicts with the initial values of these tensors."
        ),
        fix="{remedy}",
        general_advice="Load with strict=True, and see with `ckptool diff FILE -m MODULE` why they "
        "are missing.",
        example="model.load_state_dict({}, strict=False)",
    ),
)
def find_keys_left_out(site: LoadSite) -> Iterator[RuleHit]:
    record = site.record
    if record.error or not record.missing_count:
        return
    is_empty = record.missing_count >= record.key_count + record.missing_count - (
        record.unexpected_count
    )
    yield hit(
        record.missing_keys[0],
        Level.ERROR if is_empty else None,
        **_build_load_facts(record),
        count=pluralize(record.missing_count, "key"),
        keys=_join_keys(record.missing_keys, record.missing_count),
        cause=_describe_rewrite(record) or f"not in {_name_source(record)}",
        remedy=_format_key_fix(record),
    )


@check(
    LoadSite,
    Rule(
        code="CK231",
        name="load-ignored-keys",
        level=Level.WARNING,
        summary="{module} was loaded without using {count} of {source}: {keys}",
        detail="the module has no such tensors, and {loader} did not raise{at}",
        why=(
            "strict=False ignores keys that the module does not have. If a key was renamed, its "
            "weights are in the file and not in the module."
        ),
        fix="{remedy}",
        general_advice="Load with strict=True, and see with `ckptool diff FILE -m MODULE` what "
        "they are.",
        example='model.load_state_dict({"module.weight": weight}, strict=False)',
    ),
)
def find_keys_ignored(site: LoadSite) -> Iterator[RuleHit]:
    record = site.record
    if record.error or not record.unexpected_count or _is_explained_by_missing(record):
        return
    yield hit(
        record.unexpected_keys[0],
        **_build_load_facts(record),
        count=pluralize(record.unexpected_count, "key"),
        keys=_join_keys(record.unexpected_keys, record.unexpected_count),
        remedy=_format_key_fix(record),
    )


@check(
    LoadSite,
    Rule(
        code="CK232",
        name="load-failed",
        level=Level.ERROR,
        summary="{source} was not loaded into {module}: {loader} raised{at}, and {outcome}",
        detail="{cause}{error}",
        why=(
            "load_state_dict() raises after it has copied what fits: if the script catches the "
            "error, it continues with a module that is loaded in part."
        ),
        fix="{remedy}",
        general_advice="See with `ckptool diff FILE -m MODULE` what does not fit, and write a file "
        "that loads with `ckptool migrate`.",
        example=(
            "try:\n    model.load_state_dict(state)\nexcept RuntimeError:\n"
            '    print("starting from scratch")'
        ),
    ),
)
def find_failed_loads(site: LoadSite) -> Iterator[RuleHit]:
    record = site.record
    if not record.error:
        return
    keys = (*record.missing_keys, *record.unexpected_keys, *(m.key for m in record.mismatches))
    yield hit(
        next(iter(keys), ""),
        **_build_load_facts(record),
        outcome=_OUTCOMES[site.ends_process],
        cause="".join(f"{text}; " for text in [_describe_rewrite(record)] if text),
        error=summarize_message(record.error),
        remedy=_format_key_fix(record),
    )


@check(
    LoadSite,
    Rule(
        code="CK233",
        name="state-not-loaded",
        level=Level.WARNING,
        summary="`{key}` of {owner} was not loaded: {origin}, {text}",
        detail="it is {what}, which no state_dict contains, so {source} cannot restore it",
        why=(
            "load_state_dict() reports that all keys match: a plain attribute is not a key. If "
            "training changed it, the change is gone, and the outputs differ."
        ),
        fix="{remedy}",
        general_advice="self.register_buffer(NAME, ...) instead of a plain attribute.",
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.mask = torch.ones(3)\n"
            "\n\n"
            "model = Net()\n"
            "model.load_state_dict(torch.load(path))"
        ),
    ),
)
def find_state_not_loaded(site: LoadSite) -> Iterator[RuleHit]:
    record = site.record
    if record.error:
        return
    for unsaved in record.unsaved:
        if unsaved.kind in _BUFFER_KINDS and not unsaved.is_changed:
            continue  # persistent=False says that the constructor makes it
        yield hit(
            unsaved.path,
            None if record.file else Level.NOTE,  # a copy of a live module, made by the script
            **_build_load_facts(record),
            owner=unsaved.owner,
            text=unsaved.text,
            origin=_describe_value_origin(unsaved),
            what=describe_kind(unsaved),
            remedy=format_attribute_fix(unsaved),
            defined_at=unsaved.assigned_at,
        )


@check(
    LoadSite,
    Rule(
        code="CK234",
        name="state-on-other-device",
        level=Level.WARNING,
        summary="`{key}` of {owner} is on {device} after the load, and the module on {devices}",
        detail="it is {what}, which .to() does not move",
        why="The first operation that takes both raises `Expected all tensors to be on the same "
        "device`, or a copy is made in every step.",
        fix="{remedy}",
        general_advice="self.register_buffer(NAME, ...) instead of a plain attribute.",
        example='model.to("cuda").load_state_dict(state)  # self.mask is still on the CPU',
    ),
)
def find_state_on_other_device(site: LoadSite) -> Iterator[RuleHit]:
    record = site.record
    for unsaved in record.unsaved:
        if record.devices and unsaved.device and unsaved.device not in record.devices:
            yield hit(
                unsaved.path,
                **_build_load_facts(record),
                owner=unsaved.owner,
                device=unsaved.device,
                devices=" and ".join(record.devices),
                what=describe_kind(unsaved),
                remedy=format_attribute_fix(unsaved),
                defined_at=unsaved.assigned_at,
            )


@check(
    LoadSite,
    Rule(
        code="CK238",
        name="load-untied-weights",
        level=Level.WARNING,
        summary="`{key}` of {module} was tied to {others} before the load, and no longer is",
        detail="{loader} assigned a separate tensor to each name{at}",
        why=(
            "Tied weights that are loaded with assign=True become two parameters: they take twice "
            "the memory, and training moves them apart."
        ),
        fix="Tie them again after the load: {code}",
        general_advice="Tie them again after the load: model.head.weight = model.embedding.weight",
        example="model.head.weight = model.emb.weight\nmodel.load_state_dict(state, assign=True)",
    ),
)
def find_ties_broken_by_load(site: LoadSite) -> Iterator[RuleHit]:
    for first_name, *other_names in site.record.broken_ties:
        yield hit(
            first_name,
            **_build_load_facts(site.record),
            others=join_limited(other_names, _MAX_LISTED, quote_code),
            code=format_tie_code(first_name, other_names),
        )


def _describe_value_origin(unsaved: UnsavedValue) -> str:
    if not unsaved.is_built_known:
        return "it has the value that it was copied or unpickled with"
    if unsaved.is_changed:
        return "it has another value than when it was built"
    return "it has the constructor's value"


def describe_kind(unsaved: UnsavedValue) -> str:
    """Return what holds unsaved state: "a plain attribute"."""
    return _KIND_TEXTS.get(unsaved.kind, "a plain attribute")


def _build_load_facts(record: LoadRecord) -> dict[str, object]:
    return {
        "module": record.module,
        "loader": _name_loader(record),
        "source": _name_source(record),
        "at": f" at {record.where}" if record.where else "",
        "where": record.where,
    }


def _name_loader(record: LoadRecord) -> str:
    """Return the call: "load_state_dict(strict=False)"."""
    if record.is_strict or record.loader == "from_pretrained()":
        return record.loader
    return record.loader.replace("()", "(strict=False)")


def _join_keys(keys: tuple[str, ...], count: int) -> str:
    shown = ", ".join(map(quote_code, keys[:_MAX_LISTED]))
    return f"{shown} and {count - _MAX_LISTED:,} more" if count > _MAX_LISTED else shown


def _name_source(record: LoadRecord) -> str:
    return name_command_file(record.file) or "the mapping"


def _is_explained_by_missing(record: LoadRecord) -> bool:
    """Whether a prefix makes every unexpected key a missing one: CK230 says so."""
    return bool(record.missing_count) and record.rewritten_count >= record.unexpected_count


def _describe_rewrite(record: LoadRecord) -> str:
    """Return the one cause of the keys that differ; "" if no prefix explains them."""
    if record.rewrite is None:
        return ""
    count, steps = (
        pluralize(record.rewritten_count, "key"),
        " and ".join(list_rewrite_steps(record.rewrite)),
    )
    verb = "matches" if record.rewritten_count == 1 else "match"
    return f"{count} of {_name_source(record)} {verb} once {steps}"


def _format_key_fix(record: LoadRecord) -> str:
    """Return the code that rewrites the keys, and the command that explains them.

    Nothing can be asked about a mapping that comes from no file.
    """
    if record.rewrite is not None:
        code = f"state_dict = {format_rewrite_code(record.rewrite, {}, ())}"
        if not record.file or _is_container(record):
            return code
        command = _format_command(record, "migrate", "-o", _name_result(record.file))
        return f"{code}; or write a file that loads: {command}"
    if not record.file:
        return "Load with strict=True and read the error: the mapping was made by the script."
    if _is_container(record):
        file = quote_python(name_command_file(record.file))
        return f"To see why, in the script: print(ckptool.diff({file}, module=model))"
    return f"To see why: {_format_command(record, 'diff')}"


def _is_container(record: LoadRecord) -> bool:
    """Whether it is a Sequential or the like, which the script fills: no command builds it."""
    return record.module.startswith("torch.nn.modules.container.")


def _name_result(file: str) -> str:
    is_safetensors = file.endswith((".safetensors", ".safetensors.index.json"))
    container = Container.SAFETENSORS if is_safetensors else Container.TORCH_ZIP
    return name_result(Checkpoint(Path(file), container, 0, ()))


def _format_command(record: LoadRecord, command: str, *options: str) -> str:
    """Return a command on the file, the key path and the module of a load."""
    at = ("--at", record.at) if record.at else ()
    home, _, name = record.module.rpartition(".")
    if home == "__main__":
        home = record.where.rpartition(":")[0]
    arguments = (f"{argument}={literal}" for argument, literal in (record.arguments or {}).items())
    pairs = (word for argument in arguments for word in ("-k", argument))
    file = name_command_file(record.file)
    words = ("ckptool", command, file, *options, *at, "-m", f"{home}:{name}", *pairs)
    return " ".join(map(quote_shell, words))
