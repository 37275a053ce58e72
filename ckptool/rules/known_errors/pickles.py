"""Known errors of torch.load() about what a pickle imports."""

import re
from collections.abc import Iterator
from typing import Final

from ckptool.rules.known_errors.known_error import (
    Advice,
    Certainty,
    ErrorFacts,
    Explanation,
    KnownError,
    clean_group,
    fill_advice,
)

_UNPICKLING: Final = (
    "pickle_module.load", "pickle.load(", "torch/serialization.py", "torch\\serialization.py",
    "torch.load(", "joblib.load(", "unpickler", "find_class",
)  # fmt: skip
"""Words of a traceback that ends in the loading of a pickle."""
_CONVERT: Final = Advice(
    "or write a file without Python objects, without running anything of this one",
    command="ckptool convert {file:path} -o {safetensors:sh}",
)
_INSPECT_SAFETY: Final = Advice(
    "to see what the file would import or run, before you trust it",
    command="ckptool inspect {file:path}",
)
_PLAIN_PACKAGES: Final = frozenset({"numpy", "argparse", "collections", "pathlib", "datetime"})


def _find_unsupported_global(match: re.Match[str], facts: ErrorFacts) -> Iterator[Explanation]:
    name = clean_group(match["name"]).replace(" ", "")
    package = name.partition(".")[0]
    words = {**facts.words, "name": name, "package": package}
    if name.startswith(("torch.nn.", "__main__.")):
        cause, certainty = (
            f"the file has an object of the class {name}, which torch.load(weights_only=True) does "
            "not import: " + _describe_class(name),
            Certainty.PROBABLE,
        )
    else:
        cause, certainty = (
            (
                f"the file has an object of {name}, which torch.load(weights_only=True) does not "
                f"import"
            ),
            Certainty.CERTAIN,
        )
    module, _, attribute = name.rpartition(".")
    is_importable = module not in {"", "__main__"} and name.replace(".", "_").isidentifier()
    others = _NUMPY_CLASSES if package == "numpy" else ""
    code = f"import {module}; torch.serialization.add_safe_globals([{module}.{attribute}{others}])"
    allow = (Advice("if you trust this class, allow it", code=_escape_template(code)),)
    advice = (_INSPECT_SAFETY, *(allow if is_importable else ()), _CONVERT)
    yield Explanation("unsupported-global", cause, certainty, fill_advice(advice, words))


_NUMPY_CLASSES: Final = (
    ', numpy.ndarray, numpy.dtype, *{type(numpy.dtype(code)) for code in "?bhilqBHILQefdUS"}'
)
"""Classes that a pickle of NumPy values needs in addition to the one that torch names first."""


def _escape_template(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _describe_class(name: str) -> str:
    if name.startswith("torch.nn."):
        return "the whole module was saved instead of its state_dict()"
    if name.startswith("__main__."):
        return "it is defined in the script that saved the file"
    package = name.partition(".")[0]
    if package in _PLAIN_PACKAGES:
        return "a plain value that was saved with the weights"
    return f"an object of {package} that was saved with the weights"


PICKLE_ERRORS: Final = (
    KnownError(
        name="unsupported-global",
        marker="Unsupported global: GLOBAL",
        pattern=(
            r"Unsupported global: GLOBAL (?P<name>[\w.]{1,300}) was not an allowed global by "
            r"default"
        ),
        cause="",
        certainty=Certainty.CERTAIN,
        advice=(),
        find=_find_unsupported_global,
    ),
    KnownError(
        name="unsupported-class",
        marker="Unsupported class",
        pattern=r"WeightsUnpickler error: Unsupported class (?P<name>[\w.]{1,300})",
        cause="",
        certainty=Certainty.CERTAIN,
        advice=(),
        find=_find_unsupported_global,
    ),
    KnownError(
        name="dangerous-import",
        marker="Trying to load unsupported GLOBAL",
        pattern=(
            r"Trying to load unsupported GLOBAL (?P<name>[\w.]{1,300}) whose module"
            r" (?P<module>[\w.]{1,200}) is blocked"
        ),
        cause=(
            "the file would import {name}, which torch blocks: it could run any code. Do not "
            "load it"
        ),
        certainty=Certainty.CERTAIN,
        advice=(_INSPECT_SAFETY, _CONVERT),
    ),
    KnownError(
        name="not-a-pickle-weights-only",
        marker="Weights only load failed",
        pattern=r"Weights ?only load failed.{0,2500}Unsupported operand (?P<code>\d{1,4})",
        cause="",
        certainty=Certainty.PROBABLE,
        advice=(),
        find=lambda match, facts: _find_first_byte(int(match["code"]), facts),
    ),
    KnownError(
        name="invalid-load-key",
        marker="invalid load key,",
        pattern=r"invalid load key, '(?P<key>\\x[0-9a-fA-F]{2}|\\?.)'",
        cause="",
        certainty=Certainty.PROBABLE,
        advice=(),
        find=lambda match, facts: _find_first_byte(_parse_byte(match["key"]), facts),
    ),
    KnownError(
        name="lost-class",
        marker="Can't get attribute",
        pattern=(
            r"Can't get attribute '(?P<name>[\w.]{1,200})' on <module '(?P<module>[\w.]{1,200})'"
        ),
        other_contexts=("multiprocessing", "concurrent/futures"),
        cause=(
            "the file is a pickle of a class {name} that it looks for in {module}, where it is "
            "not: "
            "the whole object was saved, and its class was defined in another script, moved or "
            "renamed"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "write the tensors alone, for which the class is not needed",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
            _INSPECT_SAFETY,
            Advice("or define or import {name} in {module} before loading"),
        ),
    ),
    KnownError(
        name="lost-module",
        marker="No module named",
        pattern=(
            r"(?:ModuleNotFoundError|ImportError): No module named '?(?!numpy\._core)"
            r"(?P<module>[\w.]{1,200})"
        ),
        contexts=_UNPICKLING,
        cause=(
            "the file is a pickle of an object whose class is in the module {module}, which cannot "
            "be imported here: the code was moved, or its package is not installed"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "write the tensors alone, for which the code is not needed",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
            _INSPECT_SAFETY,
        ),
    ),
    KnownError(
        name="pickle-truncated",
        marker="EOFError: Ran out of input",
        contexts=_UNPICKLING,
        cause="the file is empty, or ends too early: it was not written or copied completely",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("to see what is there", command="ckptool inspect {file:path}"),
            Advice("write or download it again"),
        ),
    ),
    KnownError(
        name="pickle-empty",
        marker="raise EOFError EOFError",
        contexts=("_weights_only_unpickler",),
        cause="the file is empty, or ends too early: it was not written or copied completely",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("to see what is there", command="ckptool inspect {file:path}"),
            Advice("write or download it again"),
        ),
    ),
    KnownError(
        name="pickle-data-truncated",
        marker="pickle data was truncated",
        cause="the file ends too early: it was not written or copied completely",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("to see what is there", command="ckptool inspect {file:path}"),
            Advice("write or download it again"),
        ),
    ),
    KnownError(
        name="pickle-protocol",
        marker="unsupported pickle protocol:",
        pattern=r"unsupported pickle protocol: (?P<number>\d{1,3})",
        cause="the file was written with pickle protocol {number} by a newer Python",
        certainty=Certainty.CERTAIN,
        advice=(_CONVERT,),
    ),
    KnownError(
        name="weights-only-other",
        marker="Weights only load failed",
        pattern=(
            r"Weights only load failed(?!.{0,2500}(?:Unsupported (?:global|operand|class)"
            r"|Trying to load unsupported))"
        ),
        cause="torch.load(weights_only=True) refuses something in the file that is not a tensor",
        certainty=Certainty.CERTAIN,
        advice=(_INSPECT_SAFETY, _CONVERT),
    ),
)

_DOWNLOADS: Final = {
    "v": (
        "git-lfs-pointer",
        (
            "the file is probably a Git LFS pointer (a text that begins with `version`), not the "
            "weights"
        ),
        Advice("fetch the file itself", command="git lfs pull"),
    ),
    "<": (
        "html-page",
        "the file is probably an HTML or XML page: the download gave an error or a login page",
        Advice("download it again, from the address of the file itself"),
    ),
    "{": (
        "json-file",
        "the file is probably JSON: an index or an error message, not the weights",
        Advice("load the file with the weights; of shards, give the folder or the index"),
    ),
    "P": (
        "zip-file",
        "the file is probably a zip archive, which is not read by pickle.load",
        Advice("read it with torch", code="torch.load({file:py}, weights_only=True)"),
    ),
    "\x1f": (
        "gzip-file",
        "the file is compressed with gzip",
        Advice("decompress it", command="gunzip -S '' {file:path}"),
    ),
    "\x00": (
        "zeroed-file",
        "the file begins with zeros: it was not written or copied completely",
        Advice("write or download it again"),
    ),
}
"""First character of a file -> what it is instead of a pickle."""


def _find_first_byte(code: int, facts: ErrorFacts) -> Iterator[Explanation]:
    download = _DOWNLOADS.get(chr(code))
    inspect = Advice("to see what the file is", command="ckptool inspect {file:path}")
    if download is None:
        name, certainty = "not-a-pickle", Certainty.POSSIBLE
        cause = (
            "the file is not a checkpoint of torch.save: a safetensors file, another format or a "
            "damaged file"
        )
        advice: tuple[Advice, ...] = (inspect,)
    else:
        name, cause, step = download
        certainty, advice = Certainty.PROBABLE, (inspect, step)
    yield Explanation(name, cause, certainty, fill_advice(advice, facts.words))


def _parse_byte(text: str) -> int:
    return int(text.removeprefix("\\x"), 16) if text.startswith("\\x") else ord(text[-1])
