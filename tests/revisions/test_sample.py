"""A repository with six revisions: every old file arrives, and computes what it did."""

import pytest
import torch
from revisions.sample_nets import NETS, Net6
from revisions.sample_project import build_net, configure, list_files
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.errors import RevisionError

CONFIG_CLASS = "Net6"
X = torch.linspace(-1, 1, 12).reshape(3, 4)
NUMBERS = range(1, len(NETS) + 1)


def load_strictly(path, net=Net6):
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    module = net().eval()
    module.load_state_dict(state)
    return module


@pytest.fixture
def config(repository):
    return configure(repository, CONFIG_CLASS)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("number", NUMBERS)
def test_every_old_file_loads_in_plain_torch_and_computes_the_same(
    config, repository, number, suffix
):
    old = build_net(number)
    torch.save(old.state_dict(), repository / "old.pth")
    report = ckptool.upgrade(repository / "old.pth", repository / f"new{suffix}", config=config)
    assert report.from_revision[:4] == f"{number:04}"
    module = load_strictly(repository / f"new{suffix}")
    assert torch.equal(module(X), old(X))
    assert report.to_revision == "0006_unused_is_dropped"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_live_module_loads_every_old_file(config, repository, number):
    old = build_net(number)
    torch.save({"model": old.state_dict(), "epoch": 3}, repository / "old.pth")
    module = Net6().eval()
    report = ckptool.load(module, repository / "old.pth", revisions=repository / "ckpt_migrations")
    assert torch.equal(module(X), old(X))
    assert report.verdict.startswith("loaded strictly")
    assert any(note.startswith(f"is at {number:04}_") for note in report.notes)
    assert config is not None


def test_load_finds_the_chain_of_the_current_folder(repository):
    (repository / "ckptool.toml").write_text(
        '[[models]]\npath = "*"\nmodule = "revisions.sample_nets:Net6"\n'
    )
    old = build_net(1)
    torch.save(old.state_dict(), repository / "old.pth")
    module = Net6().eval()
    ckptool.load(module, repository / "old.pth")
    assert torch.equal(module(X), old(X))
    with pytest.raises(ckptool.LoadError):
        ckptool.load(Net6(), repository / "old.pth", revisions=False)
    # Another module of the same script has nothing to do with the chain.
    torch.save(torch.nn.Linear(2, 3).state_dict(), repository / "linear.pth")
    assert not ckptool.load(torch.nn.Linear(2, 3), repository / "linear.pth").notes


@pytest.mark.parametrize(("start", "end"), [(1, 4), (1, 5), (2, 5), (3, 4)])
def test_a_downgrade_that_says_so_has_the_same_bytes(config, repository, start, end):
    old = build_net(start).state_dict()
    torch.save(old, repository / "old.pth")
    for suffix in (".pth", ".safetensors"):
        new, back = repository / f"new{suffix}", repository / f"back{suffix}"
        ckptool.upgrade(repository / "old.pth", new, to=f"{end:04}", config=config)
        report = ckptool.downgrade(new, back, to=f"{start:04}", config=config)
        assert report.is_same_as_earlier is True
        assert "the state has the bytes of the file that was upgraded" in report.verdict
        found = load_file(back) if suffix == ".safetensors" else torch.load(back)
        assert found.keys() == old.keys()
        for key, value in old.items():
            assert found[key].dtype == value.dtype
            assert found[key].numpy().tobytes() == value.numpy().tobytes()


def test_a_downgrade_of_a_changed_file_does_not_say_that_it_is_the_same(config, repository):
    torch.save(build_net(1).state_dict(), repository / "old.pth")
    ckptool.upgrade(
        repository / "old.pth", repository / "new.safetensors", to="0004", config=config
    )
    from safetensors import safe_open

    with safe_open(repository / "new.safetensors", "pt") as file:
        metadata = file.metadata()
    state = load_file(repository / "new.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, repository / "new.safetensors", metadata)
    report = ckptool.downgrade(
        repository / "new.safetensors", repository / "back.pth", to="base", config=config
    )
    assert report.is_same_as_earlier is False
    assert "does not have the bytes" in report.verdict


def test_a_step_that_cannot_be_undone_is_named_in_one_line(config, repository):
    torch.save(build_net(6).state_dict(), repository / "new.pth")
    with pytest.raises(RevisionError, match="0006_unused_is_dropped cannot be undone") as caught:
        ckptool.downgrade(repository / "new.pth", repository / "old.pth", to="0001", config=config)
    assert len(caught.value.lines) == 1
    assert not (repository / "old.pth").exists()


def test_check_passes_over_the_sample(config):
    report = ckptool.check(config=config)
    assert report.exit_code == 0
    assert not report.findings
    assert [row.outputs for row in report.revisions] == ["passed"] * len(NETS)
    assert report.verdict == "the module is at 0006_unused_is_dropped, and 6 old files arrive there"


def test_check_fails_if_the_state_changed_and_no_revision_says_how(repository):
    report = ckptool.check(config=configure(repository, "Net5"))
    assert report.exit_code == 1
    assert {finding.code for finding in report.findings} == {"CK876"}


def test_check_fails_if_a_step_was_edited(config, repository):
    path = list_files(repository)[3]
    text = path.read_text()
    edited = text.replace('"q.weight"', '"other"').replace('"k.weight"', '"q.weight"')
    path.write_text(edited.replace('"other"', '"k.weight"'))
    assert path.read_text() != text
    report = ckptool.check(config=config)
    assert report.exit_code == 1
    assert {finding.code for finding in report.findings} == {"CK878"}


def test_the_gate_requires_the_head(config, repository):
    torch.save(build_net(5).state_dict(), repository / "old.pth")
    failed = ckptool.gate(repository / "old.pth", config=config)
    assert "CK870" in {finding.code for finding in failed.findings}
    ckptool.upgrade(repository / "old.pth", repository / "new.pth", config=config)
    passed = ckptool.gate(repository / "new.pth", config=config)
    assert passed.exit_code == 0
    assert "by its stamp" in passed.checkpoints[0].revision


def test_a_later_revision_reads_the_value_of_an_old_constructor(config, repository):
    """What the constructor of 0003 gave is frozen: today's code need not make it any more."""
    text = list_files(repository)[2].read_text()
    assert 'source = "file:values/0003_mask_is_a_buffer.safetensors#mask"' in text
    assert config.settings.models[0].module.endswith("Net6")


def test_check_is_a_test_suite_for_ci(repository, run_command):
    import xml.etree.ElementTree as ET
    from pathlib import Path

    (repository / "ckptool.toml").write_text(
        '[[models]]\npath = "*"\nmodule = "revisions.sample_nets:Net5"\n'
    )
    tests = Path(__file__).parent.parent
    ran = run_command("check", "-I", tests, "--format", "junit", cwd=repository)
    assert ran.code == 1
    cases = ET.fromstring(ran.out).iter("testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    assert failed == ["CK876 unrecorded-change"]


def test_a_load_does_not_need_a_valid_configuration(repository):
    (repository / "ckptool.toml").write_text("this is not TOML")
    torch.save(build_net(6).state_dict(), repository / "new.pth")
    report = ckptool.load(Net6(), repository / "new.pth")
    assert report.verdict == "loaded strictly"
    assert "not checked: a chain of migrations" in report.notes[0]
