"""Distillation from a frozen teacher; adapters only are saved; folds of a cross validation."""

import torch
from torch import nn


class Lora(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, base.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
torch.save(teacher.state_dict(), "teacher.pt")
for fold in range(3):
    torch.manual_seed(fold)
    base = nn.Linear(4, 8)
    student = nn.Sequential(Lora(base), nn.ReLU(), nn.Linear(8, 2))
    teacher.load_state_dict(torch.load("teacher.pt", weights_only=True))
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    for _ in range(4):
        x = torch.randn(8, 4)
        with torch.no_grad():
            t = teacher(x)
        optimizer.zero_grad()
        (student(x) - t).pow(2).mean().backward()
        optimizer.step()
    torch.save(
        {k: v for k, v in student.state_dict().items() if ".base." not in k}, f"fold{fold}.pt"
    )
    again = nn.Sequential(Lora(base), nn.ReLU(), nn.Linear(8, 2))
    print(again.load_state_dict(torch.load(f"fold{fold}.pt", weights_only=True), strict=False))
