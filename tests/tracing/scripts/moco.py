"""MoCo: a momentum encoder, a queue that is not persistent; the best state is loaded at the end."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class MoCo(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.momentum = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(4, 16), dim=0), persistent=False)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        q, k = F.normalize(self.encoder(x), dim=1), F.normalize(self.momentum(x), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone()], 1)
        with torch.no_grad():
            p = int(self.pointer)
            self.queue[:, p : p + len(k)] = k.T
            self.pointer.fill_((p + len(k)) % 16)
            for a, b in zip(self.encoder.parameters(), self.momentum.parameters(), strict=True):
                b.mul_(0.9).add_(a, alpha=0.1)
        return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))


model = MoCo()
optimizer = torch.optim.SGD(model.encoder.parameters(), 0.1)
best, best_state = 1e9, None
for _ in range(8):
    optimizer.zero_grad()
    loss = model(torch.randn(4, 6))
    loss.backward()
    optimizer.step()
    if loss.item() < best:
        best, best_state = loss.item(), copy.deepcopy(model.state_dict())
model.load_state_dict(best_state)
torch.save({"model": best_state, "optimizer": optimizer.state_dict()}, "moco.pt")
print(f"{best:.6f}")
