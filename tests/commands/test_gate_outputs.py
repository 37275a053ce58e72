"""Each output read back by what its readers use, for every command that finds something."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from urllib.parse import unquote

import jsonschema
import pytest
import torch
from junitparser import Error, Failure, JUnitXml, Skipped
from paths import ROOT

from ckptool import api
from ckptool.render import RenderOptions, render
from ckptool.reports.any_report import AnyReport

SARIF = json.loads((ROOT / "tests" / "data" / "sarif-2.1.0-rtm.5.json").read_text())
WITHOUT = ("-m", "samples.attention:CausalAttentionWithoutBuffers", "-k", "d_in=3", "-k", "d_out=2")
COMMANDS = [
    ("inspect", "samples/whole.pth", "samples/model.pth"),
    ("diff", "samples/model.pth"),
    ("diff", "samples/model.pth", "samples/buffer.pth"),
    ("audit", *WITHOUT, "-k", "context_length=6"),
    ("verify", "samples/model.pth", "--device", "simulated", "--input", "float32[2,6,3]"),
    ("gate", "samples/model.pth", "samples/whole.pth"),
    ("migrate", "samples/whole.pth", "--dry-run"),
]
WAIVED = (
    "[require]\nsafetensors = true\nmax-size = '1 B'\n"
    "[[waivers]]\nrule = 'CK853'\nreason = '50% of it, really:\\nold'\n"
)
POLICY = """
ignore = ["CK3"]
[require]
safetensors = true
"""


_REPORTS: dict[tuple[str, ...], dict] = {}


def reported(run_command, words) -> dict:
    """Return the JSON report of a command, which is run once for all formats."""
    if words not in _REPORTS:
        _REPORTS[words] = json.loads(run_command(*words, "--format", "json").out)
    return _REPORTS[words]


def codes(run_command, words) -> list[str]:
    return [f["code"] for f in reported(run_command, words)["findings"]]


def sarif(text: str) -> dict:
    found = json.loads(text)
    jsonschema.validators.validator_for(SARIF)(SARIF).validate(found)
    return found["runs"][0]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_sarif_is_as_oasis_says(run_command, words):
    ran = run_command(*words, "--format", "sarif")
    assert ran.err == ""
    run = sarif(ran.out)
    assert [r["ruleId"] for r in run["results"]] == codes(run_command, words)
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["partialFingerprints"]["ckptool/v1"]
        physical = result["locations"][0].get("physicalLocation")
        if physical:
            artifact = physical["artifactLocation"]
            assert artifact["uriBaseId"] in run["originalUriBaseIds"]
            assert (ROOT / unquote(artifact["uri"])).exists()
    assert run["invocations"][0]["exitCode"] == ran.code


def test_the_validator_does_find_faults(run_command):
    found = json.loads(run_command("diff", "samples/model.pth", "--format", "sarif").out)
    found["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        sarif(json.dumps(found))


def test_sarif_names_the_line_and_the_key(run_command):
    run = sarif(run_command("diff", "samples/model.pth", "--format", "sarif").out)
    (result,) = [r for r in run["results"] if r["ruleId"] == "CK110"]
    (location,) = result["locations"]
    assert location["logicalLocations"] == [{"fullyQualifiedName": "mask", "kind": "member"}]
    physical = location["physicalLocation"]
    assert physical["artifactLocation"] == {"uri": "samples/attention.py", "uriBaseId": "SRCROOT"}
    line = (
        (ROOT / "samples/attention.py")
        .read_text()
        .splitlines()[physical["region"]["startLine"] - 1]
    )
    assert "self.mask" in line
    assert result["level"] == "error"


def test_sarif_tells_what_is_suppressed_and_what_was_skipped(release):
    release.policy(WAIVED)
    release.gate("model.pth", "--baseline", "k.json", "--update-baseline")
    run = sarif(release.gate("model.pth", "--baseline", "k.json", "--format", "sarif").out)
    by_code = {r["ruleId"]: r for r in run["results"]}
    why = [r["suppressions"][0]["justification"] for r in run["results"]]
    assert set(why) == {"waiver: 50% of it, really:\\nold", "baseline: it is in the baseline"}
    assert set(by_code) == {"CK853", "CK854"}
    (skipped,) = run["invocations"][0]["toolExecutionNotifications"]
    assert skipped["level"] == "note"
    assert "not checked: the module" in skipped["message"]["text"]


def test_sarif_of_what_cannot_be_read(release):
    run = sarif(release.gate("missing.pth", "--format", "sarif").out)
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["exitCode"] == 2
    assert "missing.pth" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_fingerprints_do_not_change_from_run_to_run(run_command):
    words = ("gate", "samples/model.pth", "--format", "sarif")
    assert run_command(*words).out == run_command(*words).out


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_junit_is_read_back(run_command, words):
    ran = run_command(*words, "--format", "junit")
    report = reported(run_command, words)
    suites = JUnitXml.fromstring(ran.out.encode())
    failing = {f["code"] for f in report["findings"] if f["fails"]}
    cases = [case for suite in suites for case in suite]
    rules = [c for c in cases if c.name.startswith("CK")]
    failed = {c.name[:5] for c in rules if any(isinstance(r, Failure) for r in c.result)}
    assert failed == failing
    unexplained = bool(report["exit_code"] and not failing)
    places = {(f["path"], f["code"]) for f in report["findings"] if f["fails"]}
    assert suites.failures == len(places) + unexplained
    assert unexplained == any(c.name == "verdict" for c in cases)
    assert {f["code"] for f in report["findings"]} <= {c.name[:5] for c in cases}


def test_junit_has_a_case_for_each_rule_that_was_run(release):
    release.policy(POLICY)
    suites = JUnitXml.fromstring(
        release.gate("model.pth", "missing.pth", "--format", "junit").out.encode()
    )
    by_name = {suite.name: {case.name: case for case in suite} for suite in suites}
    rules = {name[:5] for name in by_name["model.pth"] if name.startswith("CK")}
    assert "CK854" in rules
    assert "CK503" in rules
    # What a quantised file says of itself, and what no selection of a policy leaves out.
    without_module = {"CK235", "CK236", "CK301"}
    assert {c for c in rules if c.startswith(("CK1", "CK2", "CK3"))} == without_module
    assert "CK853" not in rules  # nobody asked for a size
    (skipped,) = by_name["model.pth"]["checks the module"].result
    assert isinstance(skipped, Skipped)
    (failure,) = by_name["model.pth"]["CK854 not-safetensors"].result
    assert isinstance(failure, Failure)
    assert "ckptool convert" in failure.text
    (unread,) = by_name["could not be checked"]["can be read"].result
    assert isinstance(unread, Error)


def test_junit_says_what_is_waived(release):
    release.policy(WAIVED)
    suites = JUnitXml.fromstring(release.gate("model.pth", "--format", "junit").out.encode())
    cases = {case.name[:5]: case for suite in suites for case in suite}
    (waived,) = cases["CK853"].result
    assert isinstance(waived, Skipped)
    assert waived.message.startswith("waiver: 50% of it")


def gitlab(text: str) -> list[dict]:
    entries = json.loads(text)
    for entry in entries:
        assert entry.keys() == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["severity"] in {"info", "minor", "major", "critical", "blocker"}
        assert entry["location"]["lines"]["begin"] >= 1
        assert entry["location"]["path"]
        assert re.fullmatch("[0-9a-f]{64}", entry["fingerprint"])
    return entries


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_gitlab_gets_every_finding_once(run_command, words):
    entries = gitlab(run_command(*words, "--format", "gitlab").out)
    found = [e["check_name"] for e in entries if e["check_name"].startswith("CK")]
    assert found == codes(run_command, words)
    assert len({e["fingerprint"] for e in entries}) == len(entries)


def test_gitlab_gets_what_is_skipped_waived_and_unread(release):
    release.policy(WAIVED)
    entries = gitlab(release.gate("model.pth", "missing.pth", "--format", "gitlab").out)
    by_name = {e["check_name"]: e for e in entries}
    assert by_name["CK854"]["severity"] == "critical"
    assert by_name["CK853"]["severity"] == "info"
    assert "(waived: 50% of it" in by_name["CK853"]["description"]
    assert by_name["skipped"]["severity"] == "info"
    assert by_name["could-not-check"]["severity"] == "blocker"
    assert by_name["could-not-check"]["location"]["path"] == "missing.pth"


def test_a_failure_that_no_finding_explains_is_in_every_format(release):
    """Values that differ exit 1 and break no rule."""
    torch.save({"w": torch.ones(2)}, release.folder / "a.pth")
    torch.save({"w": torch.zeros(2)}, release.folder / "b.pth")

    def shown(form: str) -> str:
        ran = release.command("diff", "a.pth", "b.pth", "--format", form, cwd=release.folder)
        assert ran.code == 1
        return ran.out

    assert ("error", {"title": "ckptool diff", "file": "b.pth"}, "values differ") in annotations(
        shown("github")
    )
    assert "values differ" in [e["description"] for e in gitlab(shown("gitlab"))]
    notes = sarif(shown("sarif"))["invocations"][0]["toolExecutionNotifications"]
    assert ("error", "values differ") in [(n["level"], n["message"]["text"]) for n in notes]
    assert JUnitXml.fromstring(shown("junit").encode()).failures == 1


COMMAND = re.compile(r"::(error|warning|notice) ([^:]*)::(.*)")


def unescaped(text: str) -> str:
    """Return what GitHub's runner makes of it: `%25` is undone last."""
    for escaped, plain in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(escaped, plain)
    return text


def annotations(text: str) -> list[tuple[str, dict[str, str], str]]:
    found = []
    for line in text.splitlines():
        match = COMMAND.fullmatch(line)
        assert match, line
        said = dict(pair.split("=", 1) for pair in match[2].split(","))
        found.append((match[1], {k: unescaped(v) for k, v in said.items()}, unescaped(match[3])))
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_github_gets_one_annotation_for_each_problem(run_command, words):
    found = annotations(run_command(*words, "--format", "github").out)
    told = [said["title"][:5] for _, said, _ in found if said["title"].startswith("CK")]
    report = json.loads(run_command(*words, "--format", "json").out)
    causes = dict.fromkeys(f["cause"] for f in report["findings"])
    assert told == [cause[:5] for cause in causes]
    texts = " ".join(text for *_, text in found)
    followers = {f["code"] for f in report["findings"] if f["is_consequence"]}
    assert all(f"- {code} (" in texts for code in followers)
    for _, said, _ in found:
        if "file" in said:
            assert (ROOT / said["file"]).exists()


def test_github_escapes_what_a_runner_would_read(release):
    strange = "50%, a:b\n::error::x"
    torch.save({strange: torch.ones(2), "w": torch.ones(2)}, release.folder / "m.pth")
    (release.folder / "m.pth").rename(release.folder / "a,b:c%.pth")
    release.policy("[require]\ndtypes = ['int8']\n")
    out = release.gate("a,b:c%.pth", "--format", "github").out
    first = next(one for one in annotations(out) if "50%" in one[2])
    assert first[1]["file"] == "a,b:c%.pth"
    assert "50%, a:b\\n::error::x" in first[2]
    assert "file=a%2Cb%3Ac%25.pth" in out


def test_github_gets_a_step_summary(release):
    release.policy(WAIVED)
    summary = release.folder / "summary.md"
    summary.write_text("before\n")
    ran = release.gate("model.pth", "--format", "github", GITHUB_STEP_SUMMARY=str(summary))
    assert ran.code == 1
    text = summary.read_text()
    assert text.startswith("before\n### gate failed: 1 of 1 checkpoint")
    assert "| error | CK854 |" in text
    assert "not checked" in text
    assert release.gate("model.pth", "--format", "json", GITHUB_STEP_SUMMARY=str(summary)).code == 1
    assert summary.read_text() == text


def test_several_formats_at_once(release):
    release.policy(WAIVED)
    ran = release.gate(
        "model.pth",
        "--format",
        "table",
        "--format",
        "sarif",
        "-o",
        "a.sarif",
        "-v",
        "--format",
        "junit",
        "-o",
        "b.xml",
    )
    assert ran.code == 1
    assert ran.out.startswith("gate failed")
    assert sarif((release.folder / "a.sarif").read_text())["results"]
    assert len(JUnitXml.fromfile(str(release.folder / "b.xml"))) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "sarif", "--format", "junit"), "would both go to standard output"),
        (("-o", "x", "--format", "sarif", "-o", "y"), "each follows the --format"),
        (("--format", "sarif", "-o", "x", "-o", "y"), "each follows the --format"),
        (
            ("--format", "sarif", "-o", "x", "--format", "junit", "-o", "x"),
            "two reports cannot be written to the same file",
        ),
        (("--format", "sariff"), "'sarif'"),
    ],
)
def test_formats_that_do_not_go_together(release, words, said):
    ran = release.gate("model.pth", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert not (release.folder / "x").exists()


def test_migrate_prints_one_report(run_command):
    words = ("migrate", "samples/whole.pth", "--dry-run", "--format", "sarif", "--format", "json")
    ran = run_command(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "would both go to standard output" in ran.err


def test_an_output_before_its_only_format_is_understood(release):
    assert release.gate("model.pth", "-o", "r.json", "--format", "json").out == ""
    assert json.loads((release.folder / "r.json").read_text())["command"] == "gate"


def test_absolute_paths_become_relative_where_they_are_inside(release):
    release.policy(POLICY)
    path = release.folder / "model.pth"
    run = sarif(release.gate(path, "--format", "sarif").out)
    (result,) = run["results"]
    location = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location == {"uri": "model.pth", "uriBaseId": "SRCROOT"}


def test_absolute_paths_elsewhere_stay_absolute(release, tmp_path_factory):
    release.policy(POLICY)
    other = tmp_path_factory.mktemp("other") / "m odel.pth"
    torch.save({"w": torch.ones(2)}, other)
    run = sarif(release.gate(other, "--format", "sarif").out)
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(uri.removeprefix("file://")) == str(other)
    assert Path(unquote(uri.removeprefix("file://"))).exists()


@pytest.mark.parametrize("form", ["github", "gitlab", "sarif", "junit"])
def test_hostile_names_harm_no_reader(release, form):
    keys = ["evil\x1b[2J\nkey", "w\u202e", "]]>&<", "\ud800", "\x00"]
    torch.save({key: torch.ones(2) for key in keys}, release.folder / "m.pth")
    release.policy("[require]\ndtypes = ['int8']\n")
    ran = release.gate("m.pth", "--format", form)
    assert (ran.code, ran.err) == (1, "")
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out
    readers = {
        "github": annotations,
        "gitlab": gitlab,
        "sarif": sarif,
        "junit": lambda text: JUnitXml.fromstring(text.encode()),
    }
    readers[form](ran.out)


@pytest.mark.process
def test_formats_for_machines_need_no_torch(release):
    code = (
        "import sys, click.testing as t; from ckptool.cli import main; "
        "r = [t.CliRunner().invoke(main, ['gate', '--no-values', 'model.pth', '--format', f])"
        ".exit_code + 0 "
        "for f in ('github', 'gitlab', 'sarif', 'junit')]; print(r, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=release.folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[0, 0, 0, 0] False"


def test_json_is_as_its_schema_says(release):
    from typing import get_args

    import msgspec

    kinds = get_args(AnyReport)
    refs, defs = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    schema = {"anyOf": list(refs), "$defs": defs}
    release.policy(WAIVED)
    for words in (("model.pth", "missing.pth"), ("--show-policy",)):
        found = json.loads(release.gate(*words, "--format", "json").out)
        jsonschema.Draft202012Validator(schema).validate(found)
        assert found["command"] == "gate"


def test_sarif_of_a_checkout_that_is_not_installed_has_no_version(monkeypatch):
    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("ckptool.versions.version", not_installed)
    report = api.inspect(ROOT / "samples" / "model.pth")
    driver = sarif(render("sarif", report, RenderOptions()))["tool"]["driver"]
    assert driver.keys() == {"name", "rules"}
