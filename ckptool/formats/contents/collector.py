"""Parts of a checkpoint besides its tensors -> contents by place, bounded in number."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ckptool.model import Content

if TYPE_CHECKING:
    from blake3 import blake3

UNKNOWN_CONTENT: Final = ""
"""Fingerprint of a part that cannot be compared: it was not read."""
MAX_CONTENTS: Final = 10_000
"""Parts with a fingerprint of their own; those after them share one."""
REMAINDER: Final = "what follows"
"""Place of the parts beyond `MAX_CONTENTS`."""
CLASS_SUFFIX: Final = " (its class)"
"""End of the place of an object's class and arguments."""
KEYS_SUFFIX: Final = " (its keys)"
"""End of the place of the keys of a dict that are not text."""
PROVENANCE_NAME: Final = "ckptool.provenance"
"""Metadata that says how `migrate` made a file: not its content."""


def fingerprint_metadata(metadata: Mapping[str, str], place_format: str) -> dict[str, str]:
    """Return place -> fingerprint of entries of metadata, `place_format` formatted with `name`."""
    return {
        place_format.format(name=name): create_content_hasher(
            text.encode("utf-8", "surrogatepass")
        ).hexdigest()
        for name, text in metadata.items()
        if name != PROVENANCE_NAME
    }


def create_content_hasher(data: bytes = b"") -> "blake3":
    """Return a new BLAKE3 hasher of `data`."""
    from blake3 import blake3  # imported lazily: most commands fingerprint no contents

    return blake3(data)


class ContentCollector:
    """Collects the parts of one checkpoint by place; places stay distinct."""

    def __init__(self) -> None:
        self.contents: dict[str, Content] = {}
        self._counts: Counter[str] = Counter()
        self._remainder_hash: blake3 | None = None

    def add(self, place: str, content: Content) -> None:
        """Add a part; beyond `MAX_CONTENTS` it becomes one with the others there."""
        if len(self.contents) < MAX_CONTENTS:
            self._counts[place] += 1
            count = self._counts[place]
            self.contents[place if count == 1 else f"{place}'{count}"] = content
            return
        if self._remainder_hash is None:
            self._remainder_hash = create_content_hasher()
        fingerprint = content if type(content) is str else UNKNOWN_CONTENT
        self._remainder_hash.update(f"{place}\0{fingerprint}\n".encode("utf-8", "surrogatepass"))
        is_known = fingerprint and self.contents.get(REMAINDER, fingerprint)
        self.contents[REMAINDER] = self._remainder_hash.hexdigest() if is_known else UNKNOWN_CONTENT
