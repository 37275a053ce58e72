"""Text of an error -> Explanations: known errors of torch and its libraries, one block each.

| file | errors of |
|---|---|
| state_dicts.py | load_state_dict() and loaders that report keys |
| pickles.py | torch.load() and what a pickle imports |
| containers.py | files that are damaged or of another format |
| devices.py | devices, dtypes and meta tensors |
| training.py | optimizers, DDP, FSDP, DCP, DeepSpeed, Lightning |
| key_patterns.py, shape_patterns.py | causes of keys and shapes that differ |
| frameworks.py | transformers, peft, accelerate |
"""

from typing import Final

from ckptool.rules.known_errors.containers import CONTAINER_ERRORS
from ckptool.rules.known_errors.devices import DEVICE_ERRORS
from ckptool.rules.known_errors.frameworks import FRAMEWORK_ERRORS
from ckptool.rules.known_errors.known_error import (
    Advice,
    Certainty,
    ErrorFacts,
    Explanation,
    KnownError,
)
from ckptool.rules.known_errors.objects import OBJECT_ERRORS
from ckptool.rules.known_errors.pickles import PICKLE_ERRORS
from ckptool.rules.known_errors.state_dicts import STATE_DICT_ERRORS
from ckptool.rules.known_errors.training import TRAINING_ERRORS

KNOWN_ERRORS: Final[tuple[KnownError, ...]] = (
    *STATE_DICT_ERRORS,
    *PICKLE_ERRORS,
    *CONTAINER_ERRORS,
    *OBJECT_ERRORS,
    *DEVICE_ERRORS,
    *TRAINING_ERRORS,
    *FRAMEWORK_ERRORS,
)

__all__ = ["KNOWN_ERRORS", "Advice", "Certainty", "ErrorFacts", "Explanation", "KnownError"]
