"""The gate's default, `device = "cuda"`, on a real device; its simulated twins: tests/commands."""

import json
import shutil

import pytest

pytestmark = pytest.mark.cuda

POLICY = """
[[models]]
path = "*"
module = "samples.attention:{module}"
kwargs = {{ d_in = 3, d_out = 2, context_length = 6 }}

[require]
verify = ["load", "device", "forward"]
"""


def gated(command, folder, samples, name, module):
    shutil.copy(samples / name, folder / name)
    (folder / "ckptool.toml").write_text(POLICY.format(module=module))
    words = ("gate", name, "--inputs", "samples.attention:example_inputs", "--format", "json")
    return command(*words, cwd=folder)


def test_the_module_with_the_buffer_passes(cuda, ckptool, tmp_path, samples):
    ran = gated(ckptool, tmp_path, samples, "buffer.pth", "CausalAttentionWithBuffer")
    assert ran.code == 0, ran.out
    said = json.loads(ran.out)
    (judged,) = said["checkpoints"]
    assert judged["passed"]
    assert "CK856" in judged["rules"]
    assert [one["what"] for one in said["skipped"]] == []


def test_the_module_with_the_plain_attribute_fails(cuda, ckptool, tmp_path, samples):
    ran = gated(ckptool, tmp_path, samples, "model.pth", "CausalAttentionWithoutBuffers")
    assert ran.code == 1
    assert "on the same device" in ran.out or "`mask` is on cpu" in ran.out
    assert "CK856" in ran.out
