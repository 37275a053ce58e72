"""Which state of a file a command of the chain takes, and what it says of the others."""

import pytest
import torch
from revisions.sample_project import build_net, load_into_head

import ckptool
from ckptool.errors import RevisionError

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def save_average(repository):
    """Write a training checkpoint with a model and its average, both of the first revision."""
    model, average = build_net(1), build_net(1)
    with torch.no_grad():
        average.head.weight.mul_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    content = {
        "ema": average.state_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, repository / "ema.pth")
    return model, average


def test_the_usual_place_is_upgraded_and_the_average_is_named(config, repository):
    """It took `ema`, which comes first in the alphabet, and said that the file is at the head."""
    model, average = save_average(repository)
    row = ckptool.current("ema.pth", config=config).checkpoints[0]
    assert (row.at, row.note) == ("model", "`ema` is at 0001_the_first_one")
    report = ckptool.upgrade("ema.pth", "model.pth", config=config)
    assert report.at == "model"
    assert "`ema` is at 0001_the_first_one, and stays as it is: ckptool upgrade --at ema" in (
        report.notes
    )
    assert "the optimizer's state at `optimizer` stays as it is" in report.notes
    content = torch.load("model.pth")
    assert torch.equal(load_into_head(content["model"])(X), model(X))
    assert content["ema"].keys() == average.state_dict().keys()
    assert ckptool.current("model.pth", config=config).checkpoints[0].is_head


def test_the_second_state_of_a_stamped_file_is_upgraded_too(config, repository):
    """The stamp is of one state: it contradicted the other, which could not be upgraded."""
    model, average = save_average(repository)
    ckptool.upgrade("ema.pth", "model.pth", config=config)
    row = ckptool.current("model.pth", at="ema", config=config).checkpoints[0]
    assert (row.name, row.known_by, row.note) == (
        "0001_the_first_one", "recognised", "`model` is at 0006_unused_is_dropped",
    )  # fmt: skip
    report = ckptool.upgrade("model.pth", "both.pth", at="ema", config=config)
    assert not any("ckptool upgrade --at" in note for note in report.notes)
    content = torch.load("both.pth")
    assert torch.equal(load_into_head(content["model"])(X), model(X))
    assert torch.equal(load_into_head(content["ema"])(X), average(X))


def test_a_state_that_is_not_written_is_not_named(config, repository):
    save_average(repository)
    for target in ("alone.pth", "alone.safetensors"):
        report = ckptool.upgrade("ema.pth", target, drop_extra=True, config=config)
        assert not any("stays as it is" in note for note in report.notes)


def test_two_states_in_unusual_places_are_asked_about(config, repository):
    generator, discriminator = build_net(1), build_net(2)
    content = {"gen": generator.state_dict(), "disc": discriminator.state_dict()}
    torch.save(content, repository / "gan.pth")
    for command in (ckptool.current, ckptool.upgrade):
        arguments = ("gan.pth",) if command is ckptool.current else ("gan.pth", "new.pth")
        with pytest.raises(RevisionError, match="has several states of this chain, `disc`, `gen`"):
            command(*arguments, config=config)
    assert not (repository / "new.pth").exists()
    ckptool.upgrade("gan.pth", "gen.pth", at="gen", config=config)
    ckptool.upgrade("gen.pth", "both.pth", at="disc", config=config)
    content = torch.load("both.pth")
    assert torch.equal(load_into_head(content["gen"])(X), generator(X))
    assert torch.equal(load_into_head(content["disc"])(X), discriminator(X))


def test_the_gate_asks_for_the_revision_of_the_state_that_it_judges(config, repository):
    save_average(repository)
    ckptool.upgrade("ema.pth", "average.pth", at="ema", config=config)
    codes = {f.code for f in ckptool.gate("average.pth", config=config).findings}
    judged = ckptool.gate("average.pth", config=config).checkpoints[0]
    assert ("CK870" in codes) == judged.revision.startswith("is at 0001")


def test_a_revision_that_the_user_names_is_not_called_a_stamp(config, repository):
    """It said that the file has a stamp, which it does not have."""
    torch.save(build_net(1).state_dict(), "old.pth")
    report = ckptool.upgrade("old.pth", "new.pth", from_="1", config=config)
    assert "old.pth is at 0001_the_first_one, according to --from" in report.notes
    with pytest.raises(RevisionError, match=r"does not have the keys of 0003_mask_is_a_buffer \("):
        ckptool.upgrade("old.pth", "other.pth", from_="3", config=config)


def test_a_dry_run_without_a_target_is_for_the_container_of_the_source(config, repository):
    """It planned a safetensors file, which cannot store the optimizer."""
    save_average(repository)
    report = ckptool.upgrade("ema.pth", dry_run=True, config=config)
    assert report.verdict.startswith("planned (dry run): upgraded from 0001_the_first_one")
