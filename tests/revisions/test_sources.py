"""Where a file comes from, and what may happen to it on the way to another revision."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from files import same_bits
from remote.servers import serving
from revisions.sample_nets import Net1, Net6
from revisions.sample_project import build_net, list_files, load_into_head
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.errors import CkptoolError, UsageError, WriteError

X = torch.linspace(-1, 1, 12).reshape(3, 4)
NUMBERS = range(1, 7)


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_load_is_an_upgrade_and_a_load(config, repository, number, suffix):
    """Bit for bit, with the file that plain torch loads after the upgrade."""
    torch.save(build_net(number).state_dict(), "old.pth")
    ckptool.upgrade("old.pth", f"new{suffix}", config=config)
    state = load_file(f"new{suffix}") if suffix == ".safetensors" else torch.load("new.pth")
    live = Net6()
    ckptool.load(live, "old.pth", revisions=repository / "ckpt_migrations")
    assert live.state_dict().keys() == state.keys()
    for key, value in live.state_dict().items():
        assert same_bits(value, state[key])


def test_a_file_on_a_web_server(config, repository):
    old = build_net(1)
    torch.save({"model": old.state_dict(), "epoch": 3}, "old.pth")
    folder = repository
    with serving(folder) as site:
        url = f"{site.url}/old.pth"
        row = ckptool.current(url, config=config).checkpoints[0]
        assert (row.name, row.at) == ("0001_the_first_one", "model")
        ckptool.upgrade(url, "new.pth", config=config)
        ckptool.upgrade(url, "new.safetensors", drop_extra=True, config=config)
        for name in ("new.pth", "new.safetensors"):
            row = ckptool.current(f"{site.url}/{name}", config=config).checkpoints[0]
            assert (row.is_head, row.known_by) == (True, "stamped")
        live = Net6().eval()
        ckptool.load(live, url, revisions=folder / "ckpt_migrations")
        with pytest.raises(CkptoolError, match="no such file") as caught:
            ckptool.upgrade(f"{site.url}/nothing.pth", "x.pth", config=config)
        assert len(str(caught.value).splitlines()) == 1
    assert not Path("x.pth").exists()
    assert torch.equal(load_into_head(torch.load("new.pth")["model"])(X), old(X))
    assert torch.load("new.pth")["epoch"] == 3
    assert torch.equal(load_into_head(load_file("new.safetensors"))(X), old(X))
    assert torch.equal(live(X), old(X))


@pytest.mark.parametrize("others", [{}, {"trainer_state.json": '{"epoch": 1}'}])
def test_a_folder_as_save_pretrained_and_the_trainer_write_it(config, repository, others):
    """Its configuration was lost: the folder of the result had the weights alone."""
    old, folder = build_net(1), repository / "checkpoint-5"
    folder.mkdir()
    texts = {"config.json": '{"model_type": "unknown-here"}', **others}
    for name, text in texts.items():
        (folder / name).write_text(text)
    save_file(old.state_dict(), folder / "model.safetensors", {"format": "pt"})
    torch.save(torch.optim.AdamW(old.parameters()).state_dict(), folder / "optimizer.pt")
    row = ckptool.current(folder, config=config).checkpoints[0]
    assert row.name == "0001_the_first_one"
    ckptool.upgrade(folder, "new", config=config)
    for name, text in texts.items():
        assert Path("new", name).read_text() == text
    assert not Path("new", "optimizer.pt").exists()
    state = load_file(Path("new", "model.safetensors"))
    assert torch.equal(load_into_head(state)(X), old(X))
    assert ckptool.current("new", config=config).checkpoints[0].is_head


def test_a_pickled_module_whose_class_is_gone(config, repository):
    module = types.ModuleType("gone_nets")
    module.Net = type("Net", (Net1,), {"__module__": "gone_nets", "__qualname__": "Net"})
    sys.modules["gone_nets"] = module
    try:
        torch.manual_seed(5)
        old = module.Net().eval()
        torch.save(old, "old.pth")
    finally:
        del sys.modules["gone_nets"]
    ckptool.upgrade("old.pth", "new.pth", config=config)
    assert torch.equal(load_into_head(torch.load("new.pth", weights_only=True))(X), old(X))
    assert repository.exists()


def test_an_interrupted_write_leaves_nothing(config, repository):
    torch.save(build_net(1).state_dict(), "old.pth")
    before = list_names(repository)

    def interrupt(nbytes):
        raise KeyboardInterrupt

    for target in ("new.pth", "new.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            ckptool.upgrade("old.pth", target, progress=interrupt, config=config)
        assert list_names(repository) == before


def test_the_source_is_never_the_target(config, repository):
    torch.save(build_net(1).state_dict(), "old.pth")
    Path("link.pth").symlink_to("old.pth")
    content = Path("old.pth").read_bytes()
    for source, target in (
        ("old.pth", "old.pth"),
        ("old.pth", "link.pth"),
        ("link.pth", "old.pth"),
    ):
        with pytest.raises(WriteError, match="overwritten"):
            ckptool.upgrade(source, target, force=True, config=config)
    assert Path("old.pth").read_bytes() == content
    assert Path("link.pth").is_symlink()


def test_a_file_at_the_head_is_written_with_its_stamp(config, repository):
    net = build_net(6)
    torch.save(net.state_dict(), "head.pth")
    report = ckptool.upgrade("head.pth", "again.pth", config=config)
    assert report.verdict == "is at 0006_unused_is_dropped already; written with its stamp"
    for key, value in torch.load("again.pth").items():
        assert same_bits(value, net.state_dict()[key])
    assert ckptool.current("again.pth", config=config).checkpoints[0].known_by == "stamped"
    assert repository.exists()


@pytest.mark.parametrize("written", ["\r\n", "BOM"])
def test_line_endings_and_the_mark_of_an_editor_on_windows(config, repository, written):
    for path in (*list_files(repository), *repository.glob("ckpt_migrations/*.py")):
        content = path.read_bytes()
        is_mark = written == "BOM"
        path.write_bytes(b"\xef\xbb\xbf" + content if is_mark else content.replace(b"\n", b"\r\n"))
    old = build_net(1)
    torch.save(old.state_dict(), "old.pth")
    ckptool.upgrade("old.pth", "new.pth", config=config)
    assert torch.equal(load_into_head(torch.load("new.pth"))(X), old(X))


def test_a_project_is_found_from_below_and_by_a_link(repository, run_command):
    (repository / "ckptool.toml").write_text('[[models]]\npath = "*"\nmodule = "none:Net"\n')
    (repository / "ckpt_migrations").rename(repository / "chain")
    (repository / "ckpt_migrations").symlink_to("chain")
    below = repository / "a" / "b"
    below.mkdir(parents=True)
    torch.save(build_net(3).state_dict(), below / "old.pth")
    for words in (("history",), ("current", "old.pth")):
        ran = run_command(*words, cwd=below)
        assert (ran.code, ran.err) == (0, "")
    assert "is at 0003_mask_is_a_buffer" in ran.out


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("pass", "upgrade() returned NoneType, not a dict of tensors by key: end it with `return"),
        ("return {**state, 1: state['mask']}", "upgrade() returned the key 1, not a string"),
        ("state['mask'] = state['mask'].to('meta'); return state", "`mask` on the meta device"),
        ("del state['mask']; return state", "`mask` was removed"),
        ("state['mask'] = state['mask'].double(); return state", "`mask`, `scale` were changed in"),
    ],
)
def test_a_function_whose_result_is_wrong(config, repository, body, words):
    path = repository / "ckpt_migrations" / "0005_scale_in_float32.py"
    path.write_text(f"def upgrade(state):\n    {body}\n")
    torch.save(build_net(1).state_dict(), "old.pth")
    before = list_names(repository)
    with pytest.raises(CkptoolError) as caught:
        ckptool.upgrade("old.pth", "new.pth", config=config)
    assert words in str(caught.value)
    assert "/tmp" not in str(caught.value).replace(str(repository), "")
    assert list_names(repository) == before


@pytest.mark.parametrize("target", ["folder", "new.onnx"])
def test_a_suffix_is_asked_for_without_the_option_of_another_command(config, repository, target):
    """It named `--to safetensors`; --to is a revision here."""
    torch.save(build_net(1).state_dict(), "old.pth")
    with pytest.raises(UsageError, match="its suffix does not determine the format") as caught:
        ckptool.upgrade("old.pth", target, config=config)
    assert "--to" not in str(caught.value)
    assert repository.exists()


def test_a_file_that_names_code_runs_none(config, repository):
    """What a checkpoint records never chooses a file: the chain's own functions alone are run."""
    (repository / "evil.py").write_text("raise SystemExit('ran')\n")
    record = {
        "plan": [{"op": "inject", "key": "mask", "source": "python:evil.py#upgrade"}],
        "values": {"mask": "python:evil.py#upgrade"},
        "revision": {"project": "../..", "id": "evil.py", "python": "evil.py"},
    }
    metadata = {"format": "pt", "ckptool.provenance": json.dumps(record)}
    save_file(build_net(1).state_dict(), "old.safetensors", metadata)
    with pytest.raises(CkptoolError, match="has the stamp of another project"):
        ckptool.upgrade("old.safetensors", "new.pth", config=config)
    ckptool.upgrade("old.safetensors", "new.pth", from_="1", config=config)
    assert load_into_head(torch.load("new.pth")) is not None
