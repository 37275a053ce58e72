"""Errors of torch and its libraries are explained by their cause; what looks alike is not."""

import re
import time

import pytest
import torch
from rules.known_errors.error_texts import NEAR_MISSES, QUOTED, REAL, load_text, net, plain_state
from torch import nn

from ckptool.rules.known_errors import KNOWN_ERRORS
from ckptool.rules.known_errors.explain import ExplainedError, explain_log
from ckptool.rules.known_errors.key_patterns import KEY_PATTERNS
from ckptool.rules.known_errors.known_error import Certainty
from ckptool.rules.known_errors.shape_patterns import SHAPE_PATTERNS


def steps(errors: tuple[ExplainedError, ...]) -> str:
    return "\n".join(
        f"{advice.text}: {advice.command}{advice.code}"
        for error in errors
        for advice in error.explanation.advice
    )


def kinds(errors: tuple[ExplainedError, ...]) -> set[str]:
    return {error.explanation.name for error in errors}


@pytest.mark.parametrize("case", REAL)
def test_a_real_error(case, tmp_path):
    make, expected, step = REAL[case]
    text = make(tmp_path)
    errors = explain_log(text)
    assert kinds(errors) == expected, text
    assert step in steps(errors)


@pytest.mark.parametrize("case", QUOTED)
def test_a_quoted_error(case):
    text, expected, step = QUOTED[case]
    errors = explain_log(text)
    assert kinds(errors) == expected
    assert step in steps(errors)


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_a_near_miss(case):
    assert kinds(explain_log(NEAR_MISSES[case])) == set()


@pytest.mark.parametrize("case", REAL)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "".join(f"\x1b[31m{line}\x1b[0m\n" for line in text.split("\n")),
        lambda text: "".join(f"[rank1]: {line}\n" for line in text.split("\n")),
        lambda text: "".join(f"trainer-1  | {line}\n" for line in text.split("\n")),
        lambda text: "".join(
            f"2026-11-27 10:03:11,120 - root - ERROR - {line}\n" for line in text.split("\n")
        ),
        lambda text: "step 1\n" * 50 + text + "\nstep 2\n" * 50,
    ],
    ids=["windows", "colours", "rank", "compose", "logging", "in a log"],
)
def test_a_log_of_another_form(case, change, tmp_path):
    make, expected, _ = REAL[case]
    assert kinds(explain_log(change(make(tmp_path)))) == expected


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_that_wraps_anywhere(width):
    text = load_text(net(), plain_state(net()), prefix="module.")
    lines = [
        line[start : start + width]
        for line in text.split("\n")
        for start in range(0, max(1, len(line)), width)
    ]
    assert kinds(explain_log("\n".join(lines))) == {"wrapped-file"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_message_without_its_missing_keys(prefix):
    text = load_text(net(), plain_state(net()), prefix=prefix)
    text = "".join(line for line in text.splitlines(True) if "Missing key(s)" not in line)
    assert "Unexpected key(s)" in text
    (error,) = explain_log(text)
    explanation = error.explanation
    assert (explanation.name, explanation.certainty) == ("wrapped-file", Certainty.CERTAIN)
    assert any(advice.command.startswith("ckptool migrate") for advice in explanation.advice)
    code = next(advice.code for advice in explanation.advice if advice.code)
    renamed = re.search(r"\{(.*): value", code)[1]
    assert eval(renamed, {"key": f"{prefix}fc.weight"}) == "fc.weight"


@pytest.mark.parametrize("other", ["n_averaged", "modules.weight", "fc.bias", "module"])
def test_unexpected_keys_of_which_one_has_no_prefix(other):
    text = f'Unexpected key(s) in state_dict: "module.a.weight", "{other}". '
    (error,) = explain_log(f"Error(s) in loading state_dict for Net:\n\t{text}")
    assert error.explanation.name != "wrapped-file"


def test_interleaved_ranks():
    first = load_text(net(), plain_state(net()), prefix="module.").split("\n")
    second = load_text(nn.Linear(1, 1), {"weight": torch.zeros(1, 1)}).split("\n")
    lines = []
    for i in range(max(len(first), len(second))):
        lines += [f"[rank0]: {first[i]}"] if i < len(first) else []
        lines += [f"[rank1]: {second[i]}"] if i < len(second) else []
    assert kinds(explain_log("\n".join(lines))) == {"wrapped-file", "only-missing"}


def test_eight_ranks_are_one_error():
    text = load_text(net(), plain_state(net()), prefix="module.")
    log = "".join(f"[rank{r}]: {line}\n" for r in range(8) for line in text.split("\n"))
    (error,) = explain_log(log)
    assert error.count == 8


def test_several_errors_in_one_log():
    log = "\n".join([QUOTED["no GPU"][0], QUOTED["dcp"][0], QUOTED["adapter folder"][0]])
    assert [error.explanation.name for error in explain_log(log)] == [
        "saved-on-cuda",
        "dcp-missing-key",
        "adapter-config-missing",
    ]


def test_the_line_of_the_error():
    log = "a\n\nb\n" + QUOTED["dcp"][0]
    assert [error.line for error in explain_log(log)] == [4]


@pytest.mark.parametrize(
    "part",
    ["Error(s) in loading state_dict for Net:\n", 'Missing key(s) in state_dict: "', "\x1b[",
     "Weights only load failed ", "[rank0]: " * 3, "a.b.c ", '"module.a", ',
     "size mismatch for ", "PytorchStreamReader failed reading ", "2026-11-27 "],
)  # fmt: skip
def test_time_in_proportion_to_the_log(part):
    def measure(count: int) -> float:
        text = part * count
        start = time.perf_counter()
        explain_log(text)
        return time.perf_counter() - start

    small, large = 200_000 // len(part), 2_000_000 // len(part)
    measure(small)
    assert measure(large) < 30 * max(measure(small), 0.02)


def test_many_keys():
    keys = ", ".join(f'"module.layers.{i}.weight"' for i in range(50_000))
    missing = ", ".join(f'"layers.{i}.weight"' for i in range(50_000))
    text = (
        "RuntimeError: Error(s) in loading state_dict for Net:\n"
        f"\tMissing key(s) in state_dict: {missing}. \n\tUnexpected key(s) in state_dict: {keys}. "
    )
    start = time.perf_counter()
    errors = explain_log(text)
    assert "wrapped-file" in kinds(errors)
    assert time.perf_counter() - start < 20


def test_names_are_unique():
    names = [entry.name for entry in (*KNOWN_ERRORS, *KEY_PATTERNS, *SHAPE_PATTERNS)]
    names = [name for name in names if name != "unsupported-global"]
    assert len(names) == len({*names})
