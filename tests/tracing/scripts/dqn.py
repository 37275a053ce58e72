"""DQN: a replay buffer whose tensors are attributes, a target network, an exploration rate."""

import copy
import random

import torch
from torch import nn

torch.manual_seed(0)
random.seed(0)


class Replay:
    def __init__(self, size):
        self.states = torch.zeros(size, 4)
        self.rewards = torch.zeros(size)
        self.position = 0
        self.full = False

    def push(self, s, r):
        self.states[self.position] = s
        self.rewards[self.position] = r
        self.position = (self.position + 1) % len(self.rewards)
        self.full |= self.position == 0

    def sample(self, n):
        i = torch.randint(0, len(self.rewards) if self.full else self.position, (n,))
        return self.states[i], self.rewards[i]


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.epsilon = 1.0
        self.replay = Replay(32)

    def act(self, s):
        self.epsilon = max(0.05, self.epsilon * 0.95)
        return random.randrange(2) if random.random() < self.epsilon else int(self.q(s).argmax())


agent = Agent()
optimizer = torch.optim.RMSprop(agent.q.parameters(), 1e-3)
s = torch.zeros(4)
for step in range(40):
    a = agent.act(s)
    s = torch.tanh(s + torch.randn(4) * 0.1 + a * 0.1)
    agent.replay.push(s, float(a))
    if step > 8:
        states, rewards = agent.replay.sample(8)
        optimizer.zero_grad()
        (agent.q(states).max(1).values - rewards).pow(2).mean().backward()
        optimizer.step()
    if step % 10 == 0:
        agent.target.load_state_dict(agent.q.state_dict())
torch.save({"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}, "agent.pt")
print(f"{agent.epsilon:.4f}", f"{agent.q(s).sum().item():.6f}")
