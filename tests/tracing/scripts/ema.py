"""A loop with averaged weights of its own, which the checkpoint lacks; then a caught error."""

import torch
from torch import nn


class EMA:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module, decay):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    def update(self, module):
        for name, parameter in module.named_parameters():
            self.shadow[name].mul_(self.decay).add_(parameter.detach(), alpha=1 - self.decay)

    def state_dict(self):
        return {"decay": self.decay, "shadow": self.shadow}

    def load_state_dict(self, state):
        self.decay, self.shadow = state["decay"], state["shadow"]


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    ema = EMA(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    for _ in range(3):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        ema.update(model)
        print(loss.item())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "ema.pt")
    wider = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    try:
        wider.load_state_dict(torch.load("ema.pt")["model"])
    except RuntimeError:
        print("starting from scratch")
    print(sum(p.sum().item() for p in wider.parameters()), torch.rand(1).item())
    return 3


raise SystemExit(main())
