"""The gate as CI meets it: exit codes, files that cannot be read, baselines."""

import json
import re

import pytest
import torch
from command_runs import run_and_list_heavy_imports
from commands.conftest import MODEL
from torch import nn

from ckptool import api
from ckptool.config import ProjectConfig, ReleaseRequirements, Settings
from ckptool.policy.resolve import resolve_policy

SAFETENSORS = "[require]\nsafetensors = true\n"


def test_a_clean_release_passes(release):
    release.policy(MODEL)
    ran = release.gate("model.pth", "model.safetensors")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("gate passed: 2 checkpoints\n")


def test_without_a_module_the_file_is_judged_and_the_rest_is_said_to_be_skipped(release):
    ran = release.gate("model.pth")
    assert ran.code == 0
    assert "not checked: the module: no module was given with -m" in ran.out


@pytest.mark.process
def test_torch_is_not_imported_without_a_module_or_values(release):
    words = ("gate", "--no-values", "model.pth", "model.safetensors")
    assert run_and_list_heavy_imports(*words, cwd=release.folder) == "0 []"


def test_one_that_cannot_be_read_exits_2_and_hides_no_other(release):
    (release.folder / "half.pth").write_bytes((release.folder / "model.pth").read_bytes()[:600])
    release.policy(SAFETENSORS)
    for words in ((), ("--exit-zero",), ("--fail-on", "never")):
        ran = release.gate("half.pth", "missing.pth", "model.pth", *words)
        assert ran.code == 2
        assert ran.err.count("\n") == 2
        assert "half.pth" in ran.err
        assert "missing.pth: no such file" in ran.err
        assert "CK854" in ran.out
        assert "2 of 3 checkpoints could not be checked" in ran.out


def test_a_module_that_cannot_be_built_exits_2_and_hides_no_other(release):
    release.policy('[[models]]\npath = "reference/*"\nmodule = "nowhere:Net"\n' + SAFETENSORS)
    ran = release.gate("reference/model.pth", "model.pth")
    assert ran.code == 2
    assert "nowhere" in ran.err
    assert "CK854" in ran.out


def test_report_only(release):
    release.policy(SAFETENSORS)
    ran = release.gate("model.pth", "--exit-zero")
    assert ran.code == 0
    assert ran.out.startswith("gate failed: 1 of 1 checkpoint")


def test_quiet_prints_the_verdict_only(release):
    release.policy(SAFETENSORS)
    assert release.gate("model.pth", "-q").out == "gate failed: 1 of 1 checkpoint\n"


def test_without_a_path_it_says_so(release):
    ran = release.gate()
    assert ran.code == 2
    assert "ckptool gate PATH" in ran.err


def test_the_library_judges_as_the_command_does(release):
    config = ProjectConfig(Settings(require=ReleaseRequirements(safetensors=True)), release.folder)
    paths = [release.folder / "model.pth", release.folder / "model.safetensors"]
    found = api.gate(paths, config=config, policy=resolve_policy(config))
    assert found.exit_code == 1
    assert [one.passed for one in found.checkpoints] == [False, True]
    assert {f.path for f in found.findings} == {str(paths[0])}


def test_the_order_of_checkpoints_is_that_of_the_command(release):
    report = json.loads(
        release.gate("model.safetensors", "missing.pth", "model.pth", "--format", "json").out
    )
    paths = [one["path"] for one in report["checkpoints"]]
    assert paths == ["model.safetensors", "missing.pth", "model.pth"]


def test_a_baseline_silences_what_it_knows_and_nothing_else(release):
    release.policy(SAFETENSORS)
    written = release.gate("model.pth", "--baseline", "known.json", "--update-baseline")
    assert written.code == 0
    first = (release.folder / "known.json").read_text()
    ran = release.gate("model.pth", "--baseline", "known.json")
    assert ran.code == 0
    assert "known: CK854 not-safetensors in model.pth" in ran.out

    release.policy(SAFETENSORS + "max-size = '100 B'\n")
    grown = release.gate("model.pth", "--baseline", "known.json")
    assert grown.code == 1
    assert "CK853" in grown.out
    elsewhere = release.gate("reference/model.pth", "--baseline", "known.json")
    assert elsewhere.code == 1

    release.policy("")
    mended = release.gate("model.pth", "--baseline", "known.json")
    assert mended.code == 0
    assert "the baseline lists CK854 in model.pth, which is no longer" in mended.out.replace(
        "\n               ", " "
    )
    release.gate("model.pth", "--baseline", "known.json", "--update-baseline")
    assert json.loads((release.folder / "known.json").read_text())["findings"] == []
    release.policy(SAFETENSORS)
    release.gate("model.pth", "--baseline", "known.json", "--update-baseline")
    assert (release.folder / "known.json").read_text() == first
    assert not re.search(r"20\d\d-", first)


def test_an_update_keeps_what_is_known_of_other_paths(release):
    release.policy(SAFETENSORS)
    words = ("--baseline", "known.json", "--update-baseline")
    release.gate("reference/model.pth", *words)
    release.gate("model.pth", *words)
    known = json.loads((release.folder / "known.json").read_text())["findings"]
    assert [one["path"] for one in known] == ["model.pth", "reference/model.pth"]
    both = release.gate("model.pth", "reference/model.pth", "--baseline", "known.json")
    assert both.code == 0


def test_a_moved_line_of_source_is_no_new_finding(release):
    source = (
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(2, 2)\n"
        "        self.mask = torch.ones(2)\n\n"
        "    def forward(self, x):\n        return self.fc(x) * self.mask\n"
    )
    torch.save(
        {f"fc.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}, release.folder / "n.pth"
    )
    (release.folder / "net.py").write_text(source)
    words = ("n.pth", "-m", "net:Net", "--baseline", "known.json")
    assert release.gate(*words[:3]).code == 1
    assert release.gate(*words, "--update-baseline").code == 0
    (release.folder / "net.py").write_text("# moved\n\n\n" + source)
    assert release.gate(*words).code == 0
    (release.folder / "net.py").write_text(source.replace("torch.ones(2)", "torch.ones(1, 2)"))
    assert release.gate(*words).code == 1


def test_faults_of_a_baseline_are_one_line(release):
    missing = release.gate("model.pth", "--baseline", "none.json")
    assert (missing.code, missing.out) == (2, "")
    assert "none.json: no such file; --update-baseline creates it" in missing.err
    (release.folder / "bad.json").write_text('{"version": 1, "findings": [3]}')
    assert (
        "is not a baseline: Expected `object`"
        in release.gate("model.pth", "--baseline", "bad.json").err
    )
    (release.folder / "new.json").write_text('{"version": 7, "findings": []}')
    assert "version 7" in release.gate("model.pth", "--baseline", "new.json").err
    unnamed = release.gate("model.pth", "--update-baseline")
    assert unnamed.code == 2
    assert "--baseline FILE" in unnamed.err


def test_the_configuration_may_name_the_baseline(release):
    release.policy("baseline = 'known.json'\n" + SAFETENSORS)
    assert release.gate("model.pth", "--update-baseline").code == 0
    assert release.gate("model.pth").code == 0
    (release.folder / "known.json").unlink()
    assert release.gate("model.pth").code == 2


def test_our_samples_pass_their_own_policy(ckptool, samples):
    paths = sorted(
        str(p.relative_to(samples.parent))
        for p in samples.iterdir()
        if p.suffix in {".pth", ".ckpt", ".safetensors"}
    )
    ran = ckptool("gate", *paths, "--policy", "samples/gate.toml")
    assert ran.code == 0, ran.out
    assert "CK858" not in ran.out


def test_a_checkpoint_named_twice_is_judged_once(release):
    release.policy(SAFETENSORS)
    ran = release.gate("model.pth", "model.pth")
    assert ran.out.startswith("gate failed: 1 of 1 checkpoint\n")
    assert ran.out.count("CK854") == 1


def test_help_shows_examples_line_by_line(release):
    shown = release.gate("--help").out
    assert "\n  ckptool gate --show-policy\n" in shown
    assert "\\b" not in shown
