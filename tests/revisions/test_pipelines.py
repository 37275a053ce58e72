"""A pipeline of diffusers and chains: each model has its own, and from_pretrained() loads it."""

from functools import partial

import pytest
import torch

pytest.importorskip("diffusers", reason="the extra `frameworks` is not installed")

import diffusers

pytestmark = pytest.mark.process

NETS = """\
import torch
from diffusers import UNet2DModel


def build_unet(gain=False):
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    if gain:
        unet.register_buffer("gain", torch.ones(3))
    return unet
"""


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """Return the folder of a pipeline, in which the test stands, next to nets.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    names = {}
    exec(NETS, names)
    unet = names["build_unet"]()
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def run(pipeline, ckptool):
    """Run a command next to the pipeline."""
    return partial(ckptool, cwd=pipeline.parent)


def test_a_pipeline_is_not_written_as_one_folder(pipeline, run):
    """It was: from_pretrained() found no model in the result."""
    assert run("revision", "--message", "first", "--module", "nets:build_unet").code == 0
    ran = run("upgrade", "pipe", "-o", "new", "--module", "nets:build_unet")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.strip() == (
        "ckptool: pipe: a pipeline has its models in folders of their own (`unet`), each with a "
        "chain of its own: ckptool upgrade pipe/unet -o new/unet --chain FOLDER"
    )
    assert not (pipeline.parent / "new").exists()


def test_a_model_of_it_is_upgraded_and_loads(pipeline, run):
    """The folder had the names of transformers, which diffusers does not read."""
    module = ("--module", "nets:build_unet")
    run("revision", "--message", "first", *module)
    with_gain = (*module, "-k", "gain=True", "--inject", "gain=constructor")
    ran = run("revision", "--message", "gain", *with_gain)
    assert ran.code == 0, ran.err
    ran = run("upgrade", "pipe/unet", "-o", "unet", *module, "-k", "gain=True")
    assert ran.code == 0, ran.err
    old = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").state_dict()
    new = diffusers.UNet2DModel.from_pretrained(pipeline.parent / "unet").state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(new[key], old[key]) for key in old)


def test_a_converted_model_has_the_names_that_diffusers_reads(pipeline, run):
    for folder, words in {"same": (), "split": ("--max-shard-size", "20KB")}.items():
        ran = run("convert", "pipe/unet", "-o", folder, *words)
        assert ran.code == 0, ran.err
        old = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").state_dict()
        new = diffusers.UNet2DModel.from_pretrained(pipeline.parent / folder).state_dict()
        assert all(torch.equal(new[key], old[key]) for key in old)
