"""ResumeComparison: what of a resumed run differs from one without an interruption."""

from msgspec import Struct


class ResumedSave(Struct, frozen=True):
    """One save of the resumed run, and what of it differs from the uninterrupted run."""

    file: str
    """Path relative to the folder of the run."""
    saved_differences: tuple[str, ...]
    """Key paths of the saved object whose content differs."""
    live_differences: tuple[tuple[str, str, str], ...]
    """State that no state_dict holds: (name, in the uninterrupted run, in the resumed run)."""
    saved_count: int
    random_names: tuple[str, ...]
    """Key paths that differ between two uninterrupted runs already."""


class ResumeComparison(Struct, frozen=True):
    """The result of a resume check; `reason` says why there is no comparison."""

    reason: str = ""
    checkpoint: str = ""
    """File that was resumed from, relative to the folder of the run."""
    save: ResumedSave | None = None
    unchecked_ranks: tuple[int, ...] = ()
    """Ranks whose state is not compared: they take no optimizer step after the save."""
