"""Gated checkpoint x chain of its project -> what the rules about revisions look at."""

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.revisions.project_chain import default_folder, find_entry_folder
from ckptool.commands.target import ModuleTarget, name_object
from ckptool.compare.contracts.contract import build_module_contract
from ckptool.config import ProjectConfig
from ckptool.errors import RevisionError
from ckptool.locations import Location
from ckptool.model import Checkpoint, ModuleInfo, StateDict
from ckptool.revisions.chain import Chain, read_chain
from ckptool.revisions.current_revision import RevisionStatus, find_current_revision
from ckptool.revisions.recorded_state import compare_states, record_contract
from ckptool.rules.chain.arrivals import ChainChange
from ckptool.rules.chain.file_revisions import RevisionFacts
from ckptool.rules.fixes.commands import name_result


class ChainEvidence(Struct, frozen=True):
    """Where a checkpoint and its module stand in the chain of their project."""

    folder: Path
    revision: RevisionFacts | None = None
    """None of a module without a checkpoint."""
    change: ChainChange | None = None
    """None without a module."""

    @property
    def subjects(self) -> tuple[object, ...]:
        return tuple(subject for subject in (self.revision, self.change) if subject is not None)


def find_chain_evidence(
    config: ProjectConfig,
    module_target: ModuleTarget | None,
    location: Location | None,
    checkpoint: Checkpoint | None,
    module_info: ModuleInfo | None,
    state: StateDict | None = None,
) -> ChainEvidence | None:
    """Return where a checkpoint stands; None if its project has no chain.

    Args:
        config: names the chain.
        module_target: the module; None without one.
        location: path of the checkpoint; None without one.
        checkpoint: None of a module without a checkpoint.
        module_info: the module described; None without one.
        state: what was compared with the module; None takes the state that fits the chain best.

    Raises:
        RevisionError: the chain is inconsistent, or has several heads.
        NoStateError: the file has no state at the configured place.
    """
    folder = _find_gated_folder(config, module_target, location)
    if folder is None:
        return None
    chain = read_chain(folder)
    chain.require_one_head()
    change = None
    if module_info is not None:
        today = record_contract(build_module_contract(module_info))
        change = ChainChange(chain.head.name, compare_states(chain.head.state, today).text)
    at = state.at if state else None
    if checkpoint is None:
        return ChainEvidence(folder, None, change)
    options = () if config.find_entry(checkpoint.path) else _list_module_words(module_target)
    revision = replace(
        _collect_revision_facts(checkpoint, chain, at),
        options=(*_list_place_words(checkpoint, at), *options),
        has_changed=bool(change and change.difference),
    )
    return ChainEvidence(folder, revision, change)


def _find_gated_folder(
    config: ProjectConfig, module_target: ModuleTarget | None, location: Location | None
) -> Path | None:
    """Return the folder of the chain of a checkpoint or a module; None without one.

    Raises:
        RevisionError: a chain has to be read for that, and is inconsistent.
    """
    name = _name_module(module_target)
    entries = [entry for entry in config.settings.models if entry.module == name]
    entry = entries[0] if entries else config.find_entry(location) if location else None
    if entry is not None:
        return find_entry_folder(entry, config)
    folder = default_folder(config)
    if not folder.is_dir() or not any(folder.glob("*.toml")):
        return None
    return folder if read_chain(folder).revisions[-1].module == name else None


def _name_module(module_target: ModuleTarget | None) -> str:
    if module_target is None:
        return ""
    module = module_target.module
    return module if isinstance(module, str) else name_object(module)


def _collect_revision_facts(checkpoint: Checkpoint, chain: Chain, at: str | None) -> RevisionFacts:
    path, head = str(checkpoint.path), chain.head
    try:
        current_revision = find_current_revision(checkpoint, chain, at)
    except RevisionError as error:
        text = str(error).removeprefix(f"{path}: ")
        return RevisionFacts("unknown", text, "", head.name, path=path)
    participle = "downgraded" if current_revision.kind is RevisionStatus.NEWER else "upgraded"
    return RevisionFacts(
        str(current_revision.kind),
        current_revision.text,
        current_revision.revision.name if current_revision.revision else "",
        head.name,
        head.revision,
        tuple(revision.name for revision in current_revision.candidates),
        path,
        name_result(checkpoint, participle=participle),
    )


def _list_place_words(checkpoint: Checkpoint, at: str | None) -> tuple[str, ...]:
    return ("--at", at) if at and len(checkpoint.states) > 1 else ()


def _list_module_words(module_target: ModuleTarget | None) -> tuple[str, ...]:
    """Return the options that name a module and its arguments, as they were given."""
    name = _name_module(module_target)
    if module_target is None or not name:
        return ()
    arguments = (f"{key}={value!r}" for key, value in (module_target.kwargs or {}).items())
    return ("-m", name, *(word for argument in arguments for word in ("-k", argument)))
