"""Object with a state_dict -> ObjectChanges: what changed that its own loading does not restore.

The object is asked: a copy from before loads the state_dict() from after, and what is not as it is
now is lost by a save.
"""

import copy
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from ckptool.model import Skipped
from ckptool.modules.live.object_snapshot import ObjectValue, copy_object, take_object_snapshot
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.verification.result import ObjectChange, ObjectChanges

_CHECK_NAME: Final = "what load_state_dict restores"


class ObjectState(Struct, frozen=True):
    """An object as it was: its values, and a copy to load into."""

    values: Mapping[str, ObjectValue]
    copied: Any
    """None if it could not be copied."""
    copy_error: str = ""


def record_object(owner: Any) -> ObjectState:
    """Record an object that has a state_dict.

    Raises:
        UserCodeError: reading its attributes raises.
    """
    with user_code():
        values = take_object_snapshot(owner)
    try:
        with user_code():
            return ObjectState(values, copy_object(owner))
    except UserCodeError as error:
        return ObjectState(values, None, f"copying it raised {error}")


def find_lost_changes(owner: Any, before: ObjectState, since: str) -> ObjectChanges:
    """Return the values that changed and that a save and a load do not bring back.

    Raises:
        UserCodeError: reading its attributes, or its state_dict(), raises.
    """
    name = type(owner).__qualname__
    with user_code():
        now = take_object_snapshot(owner)
        state = copy.deepcopy(owner.state_dict())
    changed = {
        path: value
        for path, value in now.items()
        if path not in before.values or before.values[path].digest != value.digest
    }
    if not changed:
        return ObjectChanges(name, since)
    if before.copied is None:
        names = ", ".join(list(changed)[:3])
        skipped = Skipped(_CHECK_NAME, f"{before.copy_error}; changed: {names}")
        return ObjectChanges(name, since, skipped=(skipped,))
    try:
        with user_code():
            restored_object = copy_object(before.copied)
            restored_object.load_state_dict(state)
            restored = take_object_snapshot(restored_object)
    except UserCodeError as error:
        return ObjectChanges(name, since, load_error=str(error))
    return ObjectChanges(
        name,
        since,
        tuple(
            ObjectChange(
                path,
                before.values[path].text if path in before.values else "",
                value.text,
                value.is_plain_number,
            )
            for path, value in changed.items()
            if path not in restored or restored[path].digest != value.digest
        ),
    )
