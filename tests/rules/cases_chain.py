"""A project's chain of migrations (CK87x): a class before and after, and files of both."""

import json

import torch
from rules.cases import fires, near
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ckptool
from ckptool import api
from ckptool.config import ModelEntry, ProjectConfig, Settings
from ckptool.migration.plan.plan_file import parse_plan


class ChainNet1(nn.Module):
    """The first one."""

    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(2, 3)

    def forward(self, x):
        return self.inp(x)


class ChainNet2(nn.Module):
    """`inp` was renamed to `body`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 3)

    def forward(self, x):
        return self.body(x)


class ChainNet3(ChainNet2):
    """A buffer more."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.arange(1.0, 4.0))


SAME_SHAPE = '[[ops]]\nop = "reshape"\nkey = "body.bias"\nshape = [3]\nwas = [3]\n'
"""A step that keys and shapes do not show."""
SWAP = parse_plan(SAME_SHAPE)


def configure(tmp, number):
    module = f"rules.cases_chain:ChainNet{number}"
    entry = ModelEntry(
        path="*", module=module, inputs=("float32[1,2]",), revisions="ckpt_migrations"
    )
    return ProjectConfig(Settings(models=(entry,)), tmp, tmp / "ckptool.toml")


def build_chain(tmp, count=2):
    ckptool.revision("the first one", config=configure(tmp, 1))
    if count > 1:
        ckptool.revision("inp is body", accept_renames=True, config=configure(tmp, 2))
    return configure(tmp, min(count, 2))


def save_old(tmp):
    torch.save(ChainNet1().state_dict(), tmp / "old.pth")
    return tmp / "old.pth"


def gate(path, tmp, config):
    return api.gate(path, config=config)


def upgrade(tmp, config):
    ckptool.upgrade(save_old(tmp), tmp / "new.safetensors", config=config)
    return tmp / "new.safetensors"


def edit_stamp(path, **fields):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["ckptool.provenance"])
    record["revision"] |= fields
    save_file(load_file(path), path, metadata | {"ckptool.provenance": json.dumps(record)})
    return path


@fires("CK870", "CK211", "CK851", "CK210")
def an_old_file_in_a_release(tmp):
    config = build_chain(tmp)
    return gate(save_old(tmp), tmp, config)


@near("CK870")
def a_file_at_the_head_in_a_release(tmp):
    config = build_chain(tmp)
    return gate(upgrade(tmp, config), tmp, config)


@fires("CK871")
def a_file_of_a_revision_that_is_not_there(tmp):
    config = build_chain(tmp)
    return gate(edit_stamp(upgrade(tmp, config), id="ffffffffff"), tmp, config)


@near("CK871")
def a_file_without_a_stamp_at_the_head(tmp):
    config = build_chain(tmp)
    torch.save(ChainNet2().state_dict(), tmp / "new.pth")
    return gate(tmp / "new.pth", tmp, config)


@fires("CK872")
def a_stamp_of_another_project(tmp):
    config = build_chain(tmp)
    return gate(edit_stamp(upgrade(tmp, config), project="other-1"), tmp, config)


@near("CK872")
def a_stamp_of_this_project(tmp):
    config = build_chain(tmp)
    return gate(edit_stamp(upgrade(tmp, config)), tmp, config)


@fires("CK873", "CK204")
def a_key_that_no_revision_records(tmp):
    config = build_chain(tmp)
    torch.save(ChainNet3().state_dict(), tmp / "new.pth")
    return gate(tmp / "new.pth", tmp, config)


@near("CK873")
def a_file_without_a_chain(tmp):
    torch.save(ChainNet2().state_dict(), tmp / "new.pth")
    return api.gate(tmp / "new.pth", module="rules.cases_chain:ChainNet2", config=ProjectConfig())


@fires("CK874", "CK204")
def a_stamp_that_was_kept_with_another_key(tmp):
    config = build_chain(tmp)
    path = upgrade(tmp, config)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | {"gain": torch.ones(3)}, path, metadata)
    return gate(path, tmp, config)


@near("CK874")
def a_stamp_that_was_kept_with_other_values(tmp):
    config = build_chain(tmp)
    path = upgrade(tmp, config)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, metadata)
    return gate(path, tmp, config)


@fires("CK875")
def two_revisions_with_the_same_keys(tmp):
    config = build_chain(tmp)
    ckptool.revision("other values", plan=SWAP, config=config)
    torch.save(ChainNet2().state_dict(), tmp / "new.pth")
    return gate(tmp / "new.pth", tmp, config)


@near("CK875")
def two_revisions_with_the_same_keys_and_a_stamp(tmp):
    config = build_chain(tmp)
    ckptool.revision("other values", plan=SWAP, config=config)
    return gate(upgrade(tmp, config), tmp, config)


@fires("CK876")
def a_state_that_no_revision_records(tmp):
    build_chain(tmp)
    return ckptool.check(config=configure(tmp, 3))


@near("CK876")
def a_state_that_the_head_records(tmp):
    return ckptool.check(config=build_chain(tmp))


def edit_head(tmp, old, new):
    path = max((tmp / "ckpt_migrations").glob("*.toml"))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@fires("CK877", "CK879")
def a_step_that_matches_no_key(tmp):
    config = build_chain(tmp)
    edit_head(tmp, 'key = "inp.*"', 'key = "input.*"')
    return ckptool.check(config=config)


@near("CK877")
def a_step_that_is_written_otherwise(tmp):
    config = build_chain(tmp)
    edit_head(tmp, 'why = "', 'why = "reviewed: ')
    return ckptool.check(config=config)


@fires("CK878")
def a_fixture_whose_outputs_are_others(tmp):
    config = build_chain(tmp)
    path = tmp / "ckpt_migrations" / "fixtures" / "0001_the_first_one.pth"
    torch.save({key: value + 1 for key, value in torch.load(path).items()}, path)
    return ckptool.check(config=config)


@near("CK878")
def a_fixture_without_recorded_outputs(tmp):
    config = build_chain(tmp)
    (tmp / "ckpt_migrations" / "fixtures" / "0001_the_first_one.golden.safetensors").unlink()
    return ckptool.check(config=config)


@fires("CK879", "CK877")
def a_step_more_than_the_recorded_state_has(tmp):
    config = build_chain(tmp)
    edit_head(tmp, "[state]", '[[ops]]\nop = "drop"\nkey = "body.bias"\n\n[state]')
    return ckptool.check(config=config)


@near("CK879")
def steps_that_lead_to_the_recorded_state(tmp):
    config = build_chain(tmp)
    edit_head(tmp, "[state]", f"{SAME_SHAPE}\n[state]")
    return ckptool.check(config=config)
