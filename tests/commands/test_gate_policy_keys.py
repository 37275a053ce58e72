"""Every key of a policy: a release that passes with it, and one that fails."""

import argparse
import json

import pytest
import torch
from command_runs import WITH_BUFFER, Ran
from commands.conftest import MODEL
from torch import nn

REFERENCE = ("reference/model.pth", *WITH_BUFFER)
PTH, SAFE = ("model.pth",), ("model.safetensors",)
WAIVER = '[[waivers]]\nreason = "read by old loaders"\n'
SAFETENSORS = "[require]\nsafetensors = true\n"
LOADS = MODEL + "[require]\nverify = ['load', 'forward']\ndevice = 'simulated'\n"
INPUT = ("--input", "float32[4,2]")


@pytest.mark.parametrize(
    ("passing", "failing", "words", "code"),
    [
        ("select = ['CK1']\n", "select = ['CK85']\n", PTH, "CK854"),
        ("ignore = ['CK854']\n", "ignore = ['CK853']\n", PTH, "CK854"),
        ("fail-on = 'never'\n", "fail-on = 'note'\n", PTH, "CK854"),
        ("levels = { CK854 = 'warning' }\n", "levels = { CK85 = 'error' }\n", PTH, "CK854"),
        ("levels = { CK85 = 'error', CK854 = 'note' }\n", "", PTH, "CK854"),
    ],
)
def test_what_counts(release, passing, failing, words, code):
    for text, expected in ((passing, 0), (failing, 1)):
        release.policy(text + SAFETENSORS)
        ran = release.gate(*words)
        assert ran.code == expected, ran.out
        assert (code in ran.out) >= expected


@pytest.mark.parametrize(
    ("passing", "failing", "words", "code"),
    [
        ("strict = false", "strict = true", REFERENCE, "CK851"),
        ("strict = false", "", REFERENCE, "CK851"),
        ("dtypes = ['float*']", "dtypes = ['bfloat16']", PTH, "CK852"),
        ("max-size = '1 MB'", "max-size = '100 B'", PTH, "CK853"),
        ("safetensors = false", "safetensors = true", PTH, "CK854"),
        ("verify = []", "verify = ['load']", PTH, "CK856"),
    ],
)
def test_requirements(release, passing, failing, words, code):
    for text, expected in ((passing, 0), (failing, 1)):
        release.policy(f"[require]\n{text}\n")
        ran = release.gate(*words)
        assert ran.code == expected, ran.out
        shown = {f"error   {code}" in ran.out, f"{code} (error)" in ran.out}  # by itself, or not
        assert (True in shown) == bool(expected)


def test_globals_are_allowed_by_their_exact_names_only(release):
    torch.save({"w": torch.ones(2), "args": argparse.Namespace()}, release.folder / "args.pth")
    for allowed, code in (
        ("", 1),
        ("globals = []", 1),
        ("globals = ['argparse']", 1),
        ("globals = ['argparse.namespace']", 1),
        ("globals = ['argparse.Namespace']", 0),
    ):
        release.policy(f"[require]\n{allowed}\n")
        assert release.gate("args.pth").code == code
    path = "[[paths]]\npath = 'args.pth'\nrequire = { globals = ['argparse.Namespace'] }\n"
    release.policy(path)
    assert release.gate("args.pth").code == 0


def test_a_global_is_waived_by_its_exact_name_only(release):
    torch.save({"w": torch.ones(2), "args": argparse.Namespace()}, release.folder / "args.pth")
    for key, code in (("*", 1), ("argparse.*", 1), ("argparse.Namespace", 0)):
        release.policy(WAIVER + f"rule = 'CK301'\nkey = '{key}'\n")
        assert release.gate("args.pth").code == code


def test_safetensors_is_a_container_of_safetensors(release):
    release.policy(SAFETENSORS)
    assert release.gate(*SAFE).code == 0


def test_coverage(release):
    torch.save({"weight": nn.Linear(2, 3).weight.detach()}, release.folder / "half.pth")
    waived = MODEL + WAIVER + "rule = 'CK201'\n[require]\ncoverage = "
    release.policy(waived + "0.6\n")
    assert release.gate("half.pth").code == 0
    release.policy(waived + "0.9\n")
    ran = release.gate("half.pth")
    assert ran.code == 1
    assert (
        "only 66.67% of the parameters' elements would load, and the policy asks for 90%" in ran.out
    )


def test_required_levels_pass_only_where_they_ran(release):
    release.policy(LOADS)
    assert release.gate("model.pth", *INPUT).code == 0
    without = release.gate("model.pth")
    assert without.code == 1
    assert "the policy requires forward to pass, and it did not: skipped" in without.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_simulated_device_is_enough_only_where_the_policy_says_so(release):
    release.policy(LOADS.replace("'simulated'", "'auto'"))
    assert release.gate("model.pth", *INPUT).code == 0
    for device in ("device = 'cuda'\n", ""):
        release.policy(LOADS.replace("device = 'simulated'\n", device))
        ran = release.gate("model.pth", *INPUT)
        assert ran.code == 1
        assert "no CUDA device is available" in ran.out
        assert 'device = "simulated" or "auto"' in ran.out


def test_a_module_may_fail_on_the_simulated_device(release):
    release.policy("[require]\nverify = ['device']\ndevice = 'simulated'\n")
    plain = [w.replace("WithBuffer", "WithoutBuffers") for w in REFERENCE]
    ran = release.gate(*plain, "--input", "float32[2,6,3]")
    assert ran.code == 1
    assert "CK856 (error): the policy requires device to pass, and it did not" in ran.out
    assert "`mask` is on cpu where" in ran.out


def test_a_gate_is_stricter_than_a_diff(release):
    """CK204 is a warning in diff and an error in a gate; a policy may say otherwise."""
    state = {**nn.Linear(2, 3).state_dict(), "extra": torch.ones(2)}
    torch.save(state, release.folder / "extra.pth")
    release.policy(MODEL)
    assert "warning CK204" in release.command("diff", "extra.pth", cwd=release.folder).out
    assert "error   CK204" in release.gate("extra.pth").out
    release.policy("levels = { CK204 = 'note' }\n" + MODEL)
    assert "note    CK204" in release.command("diff", "extra.pth", cwd=release.folder).out
    lowered = release.gate("extra.pth")
    assert "a note on its own, an error because of CK" in lowered.out
    assert "CK851 (error)" in lowered.out  # it still does not load strictly


def test_what_holds_for_some_paths(release):
    release.policy(
        SAFETENSORS + "[[paths]]\npath = '*.pth'\nignore = ['CK854']\n"
        "[[paths]]\npath = 'reference/*'\nignore = []\nlevels = { CK854 = 'warning' }\n"
        "fail-on = 'warning'\n"
    )
    assert release.gate("model.pth", "model.safetensors").code == 0
    ran = release.gate("model.pth", "reference/model.pth")
    assert ran.code == 1
    assert "warning CK854" in ran.out
    assert release.gate("reference/model.pth", "--fail-on", "error").code == 0


def test_path_requirements_lie_over_the_others(release):
    release.policy(
        "[require]\nmax-size = '100 B'\nsafetensors = true\n"
        "[[paths]]\npath = '*.pth'\nrequire = { max-size = '1 MB' }\n"
    )
    ran = release.gate("model.pth")
    assert "CK853" not in ran.out
    assert "CK854" in ran.out


@pytest.mark.parametrize(
    ("waiver", "code"),
    [
        ("rule = 'CK854'\n", 0),
        ("rule = 'ck8'\n", 0),
        ("rule = 'CK854'\npath = '*.pth'\n", 0),
        ("rule = 'CK854'\npath = 'other/*'\n", 1),
        ("rule = 'CK854'\nkey = 'weight'\n", 1),
        ("rule = 'CK853'\n", 1),
        ("rule = 'CK854'\nexpires = 2999-12-31\n", 0),
        ("rule = 'CK854'\nexpires = 2020-12-31\n", 1),
    ],
)
def test_waivers(release, waiver, code):
    release.policy(SAFETENSORS + WAIVER + waiver)
    ran = release.gate("model.pth")
    assert ran.code == code, ran.out
    assert ("waived: CK854 not-safetensors in model.pth: read by old loaders" in ran.out) == (
        code == 0
    )


def test_an_expired_waiver_fails_by_name_even_where_it_waives_nothing(release):
    release.policy(WAIVER + "rule = 'CK301'\nexpires = 2020-12-31\n")
    ran = release.gate("model.safetensors")
    assert ran.code == 1
    assert "the waiver for CK301 (keys: *; files: *) expired on 2020-12-31" in ran.out
    assert "read by old loaders" in ran.out


def test_an_unused_waiver_is_a_note(release):
    release.policy(WAIVER + "rule = 'CK301'\n")
    ran = release.gate("model.safetensors")
    assert ran.code == 0
    assert "note    CK858" in ran.out


def test_waivers_and_levels_hold_in_diff_as_well(release):
    """A waived finding is no finding anywhere; what differs exits 1 all the same."""
    release.policy(WAIVER + "rule = 'CK1'\nkey = 'mask'\n")
    plain = [w.replace("WithBuffer", "WithoutBuffers") for w in REFERENCE]
    ran = release.command("diff", *plain, cwd=release.folder)
    assert ran.code == 0
    assert "waived: CK110 device-not-following of `mask`" in ran.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("level = {}\n", "unknown key `level`; did you mean `levels`?"),
        (
            "levels = { CK1001 = 'error' }\n",
            "levels: there is no rule 'CK1001'; did you mean CK101",
        ),
        ("levels = { CK101 = 'fatal' }\n", "levels: 'fatal' is not one of note, warning, error"),
        ("[require]\ndtype = []\n", "require: unknown key `dtype`; did you mean `dtypes`?"),
        ("safetensor = true\n", "did you mean `safetensors` of `require`?"),
        ("[require]\nmax-size = 'big'\n", '\'big\' is not a size: write "500 MB" or "2 GiB"'),
        ("[require]\ncoverage = 99\n", "coverage is a fraction of the elements: 0 to 1"),
        (
            "[require]\nverify = ['forwards']\n",
            "require: verify: number 1: 'forwards' is not one of load, device, forward",
        ),
        ("[require]\nglobals = ['torch.*']\n", "globals: 'torch.*' is a pattern"),
        ("[require]\ndevice = 'tpu'\n", "device: 'tpu' is not one of cuda, simulated, auto, cpu"),
        ("[[waivers]]\nrule = 'CK101'\n", "[[waivers]] number 1: `reason` is missing"),
        ("[[waivers]]\nrule = 'CK101'\nreason = ' '\n", "a waiver needs a reason"),
        ("[[waivers]]\nrule = 'CK11x'\nreason = 'r'\n", "waivers: there is no rule 'CK11x'"),
        ("[[waivers]]\nrule = 'CK1'\nreason = 'r'\nuntil = 2020-01-01\n", "known are expires"),
        ("[[waivers]]\nrule = 'CK1'\nreason = 'r'\nexpires = 'soon'\n", "expected a date"),
        ("select = 'CK3'\n", "select: expected a list, and it is text in quotes"),
        ("[[paths]]\npath = '*'\nfail_on = 'note'\n", "did you mean `fail-on`?"),
        ("[[paths]]\npath = '*'\nrequire = { size = '1' }\n", "`max-size`"),
        ("[[paths]]\npath = 'x/*'\nselect = ['CK0']\n", "paths, x/*: there is no rule 'CK0'"),
    ],
)
def test_a_fault_in_a_policy_is_one_line_that_names_it(release, text, said):
    release.policy(text)
    ran = release.gate("model.pth")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("ckptool: ")
    assert "ckptool.toml: " in ran.err
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_another_policy_file(release):
    (release.folder / "strict.toml").write_text(SAFETENSORS)
    assert release.gate("model.pth").code == 0
    assert release.gate("model.pth", "--policy", "strict.toml").code == 1
    missing = release.gate("model.pth", "--policy", "none.toml")
    assert missing.code == 2
    assert "none.toml: no such file" in missing.err


def test_a_pyproject_as_policy_file(release):
    (release.folder / "pyproject.toml").write_text("[tool.ckptool.require]\nsafetensors = true\n")
    assert release.gate("model.pth", "--policy", "pyproject.toml").code == 1
    assert release.gate("model.pth").code == 1


def settings(ran: Ran) -> dict[str, tuple[str, str]]:
    report = json.loads(ran.out)
    return {s["name"]: (s["value"], s["origin"]) for s in report["settings"]}


def test_show_policy_says_where_each_part_is_from(release):
    (release.folder / "pyproject.toml").write_text(
        "[tool.ckptool]\nignore = ['CK3']\nlevels = { CK203 = 'error' }\n"
        "[tool.ckptool.require]\nmax-size = '2 GiB'\n"
        "[[tool.ckptool.paths]]\npath = '*.pth'\nrequire = { max-size = '1 KB' }\n"
        "[[tool.ckptool.waivers]]\nrule = 'CK858'\nreason = 'r'\nexpires = 2020-01-02\n"
    )
    shown = settings(release.gate("--show-policy", "--format", "json", "--fail-on", "note"))
    assert shown["select"] == ("all", "default")
    assert shown["ignore"] == ("CK3", "pyproject.toml: [tool.ckptool]")
    assert shown["fail-on"] == ("note", "--fail-on")
    assert shown["levels.CK204"] == ("error at least", "default")
    assert shown["levels.CK203"] == ("error", "pyproject.toml: [tool.ckptool]")
    assert shown["require.strict"] == ("true", "default")
    assert shown["require.max-size"][0] == "2 GiB"
    assert shown["require.max-size for *.pth"] == ("1 KB", "pyproject.toml: [[tool.ckptool.paths]]")
    assert shown["waivers.CK858"][0] == "* in *, until 2020-01-02, expired: r"
    one = settings(release.gate("model.pth", "--show-policy", "--format", "json"))
    assert one["require.max-size"] == (
        "1 KB",
        "pyproject.toml: [[tool.ckptool.paths]] number 1, *.pth",
    )
    assert one["fail-on"] == ("error", "default")


def test_show_policy_fits_a_terminal(release):
    ran = release.gate("--show-policy", COLUMNS="80")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
