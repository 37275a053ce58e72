"""A GAN with two optimizers and spectral norm; the optimizer of the discriminator is forgotten."""

import torch
from torch import nn

torch.manual_seed(0)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.fixed_noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def forward(self, z):
        return self.net(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(2, 16)),
            nn.LeakyReLU(0.2),
            nn.utils.parametrizations.spectral_norm(nn.Linear(16, 1)),
        )

    def forward(self, x):
        return self.net(x)


g, d = Generator(), Discriminator()
opt_g, opt_d = (
    torch.optim.Adam(g.parameters(), 1e-3, betas=(0.5, 0.9)),
    torch.optim.Adam(d.parameters(), 1e-3, betas=(0.5, 0.9)),
)
loss = nn.BCEWithLogitsLoss()
for _ in range(5):
    real = torch.randn(8, 2) + 3
    fake = g(torch.randn(8, 4))
    opt_d.zero_grad()
    (loss(d(real), torch.ones(8, 1)) + loss(d(fake.detach()), torch.zeros(8, 1))).backward()
    opt_d.step()
    opt_g.zero_grad()
    loss(d(fake), torch.ones(8, 1)).backward()
    opt_g.step()
torch.save(
    {"g": g.state_dict(), "d": d.state_dict(), "opt_g": opt_g.state_dict(), "step": 5}, "gan.pt"
)
print(f"{g(g.fixed_noise).sum().item():.6f}")
