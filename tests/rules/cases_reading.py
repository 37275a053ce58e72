"""Cases of files that are healthy though they look odd: nothing may be said against them."""

import collections

import numpy as np
import torch
from rules.cases import fires, near
from torch import nn

from ckptool import api


def scripted(tmp):
    path = tmp / "script.pt"
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(path)
    return api.inspect(path)


@near("CK302")
def torchscript_is_no_pickled_module(tmp):
    return scripted(tmp)


@near("CK303")
def torchscript_holds_its_own_classes(tmp):
    return scripted(tmp)


@fires("CK216", "CK209", "CK210")
def a_prefix_hides_no_counter(tmp):
    """The file has num_batches_tracked, under DistributedDataParallel's name: a note at most."""
    net = nn.Sequential(nn.BatchNorm1d(2))
    path = tmp / "ddp.pth"
    torch.save({f"module.{key}": value for key, value in net.state_dict().items()}, path)
    report = api.diff(path, module=net)
    assert [f.level for f in report.findings if f.code == "CK216"] == ["note"]
    return report


@fires("CK309", "CK301")
def random_state_beside_the_model(tmp):
    """The tensor of the generator at the root is no model: --at names the model."""
    net = nn.Linear(2, 2)
    path = tmp / "train.pth"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = collections.OrderedDict(
        epoch=3,
        rng=torch.get_rng_state(),
        best=np.float64(1.5),
        model=net.state_dict(),
        optimizer=optimizer.state_dict(),
    )
    torch.save(content, path)
    report = api.inspect(path)
    fix = next(f.fix for f in report.findings if f.code == "CK309")
    assert "--at model" in fix
    roles = {state.at: state.role for state in report.checkpoints[0].states}
    assert roles == {"": "tensors", "model": "state_dict", "optimizer": "optimizer"}
    assert ("epoch", "3") in {(e.at, e.text) for e in report.checkpoints[0].entries}
    return report
