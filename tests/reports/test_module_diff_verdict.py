"""The verdict's line of `diff PATH -m MODULE`."""

import torch
from torch import nn

import ckptool


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.mask = torch.rand(2)


def test_keys_are_in_natural_order(tmp_path):
    """It said blocks.0, blocks.1, blocks.10, as text is sorted."""
    module = nn.ModuleDict({"blocks": nn.Sequential(*(Masked() for _ in range(11)))})
    torch.save(module.state_dict(), tmp_path / "model.pth")
    report = ckptool.diff(tmp_path / "model.pth", module=module)
    assert report.verdict == (
        "loads, but `blocks.*.mask` are not in the state_dict and will not be saved"
    )
