"""What Python 3.11.0 to 3.11.3 pickles, made with any version."""

import enum
import io
import pickle
import types


class EarlyPickler(pickle.Pickler):
    """Pickles members of enums as Python 3.11.0 to 3.11.3 does: by getattr()."""

    attribute = ""
    """Looked up instead of the member's name; "" for that."""

    def reducer_override(self, value):
        if isinstance(value, enum.Enum):
            return getattr, (type(value), self.attribute or value.name)
        return NotImplemented


early_pickle = types.SimpleNamespace(
    __name__="early_pickle", Pickler=EarlyPickler, dumps=pickle.dumps
)
"""The `pickle_module` with which torch.save writes what Python 3.11.0 to 3.11.3 writes."""


def pickle_early(value, attribute: str = "") -> bytes:
    file = io.BytesIO()
    pickler = EarlyPickler(file)
    pickler.attribute = attribute
    pickler.dump(value)
    return file.getvalue()
