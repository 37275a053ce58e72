"""EMA by AveragedModel, which no file has, and SWA with its scheduler, which one has."""

import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

torch.manual_seed(0)
data = [torch.randn(8, 6) for _ in range(6)]
model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 1))
swa, ema = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
swa_scheduler = SWALR(optimizer, swa_lr=0.05)
for epoch in range(6):
    for batch in data:
        optimizer.zero_grad()
        model(batch).pow(2).mean().backward()
        optimizer.step()
        ema.update_parameters(model)
    if epoch > 2:
        swa.update_parameters(model)
        swa_scheduler.step()
    else:
        scheduler.step()
    torch.save(
        {
            "model": model.state_dict(),
            "swa": swa.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "swa_scheduler": swa_scheduler.state_dict(),
            "epoch": epoch,
        },
        "last.pt",
    )
update_bn(data, swa)
torch.save(swa.module.state_dict(), "swa.pt")
print(f"{swa(data[0]).sum().item():.6f} {ema(data[0]).sum().item():.6f}")
