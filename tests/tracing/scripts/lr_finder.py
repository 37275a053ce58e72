"""A learning-rate range test that puts model and optimizer back, then trains."""

import copy

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
saved_model, saved_optimizer = (
    copy.deepcopy(model.state_dict()),
    copy.deepcopy(optimizer.state_dict()),
)
history = []
for k in range(12):
    for group in optimizer.param_groups:
        group["lr"] = 1e-5 * 2.5**k
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 4)) - 1).pow(2).mean()
    loss.backward()
    optimizer.step()
    history.append((loss.item(), 1e-5 * 2.5**k))
model.load_state_dict(saved_model)
optimizer.load_state_dict(saved_optimizer)
best = min(history)[1]
for group in optimizer.param_groups:
    group["lr"] = best / 10
for _ in range(5):
    optimizer.zero_grad()
    (model(torch.randn(8, 4)) - 1).pow(2).mean().backward()
    optimizer.step()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "lr.pt")
print(f"{best:.6f}")
