"""Constructors that raise, recurse, delete `self`, and run in two threads at once."""

import threading

import torch
from torch import nn


class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        raise ValueError("not today")


class Tree(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.child = Tree(depth - 1) if depth else None
        self.mask = torch.ones(2)
        del depth, self


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        barrier.wait()
        self.linear = nn.Linear(3, 3)
        self.name = name
        barrier.wait()
        self.scale = torch.ones(3)


barrier = threading.Barrier(2)
torch.manual_seed(0)
try:
    Bad()
except ValueError:
    print("raised")
tree = Tree(1)
tree.mask *= 2
tree.child.mask *= 3
nets = {}
threads = [threading.Thread(target=lambda n=n: nets.update({n: Net(n)})) for n in ("a", "b")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for net in nets.values():
    nn.init.ones_(net.linear.weight)  # the threads drew in any order
    nn.init.ones_(net.linear.bias)
    net.scale += 1
torch.save(tree.state_dict(), "tree.pt")
torch.save({name: nets[name].state_dict() for name in ("a", "b")}, "nets.pt")
