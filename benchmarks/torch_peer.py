"""The CIFAR residual networks in PyTorch, a peer for benchmarks and parity tests. It needs torch."""

import contextlib
import importlib
import sys
import types

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Basic block of version 1 with shortcut A (arXiv:1512.03385 Sec. 4.2)."""

    def __init__(self, in_filters: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_filters, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.stride = stride
        self.new_filters = filters - in_filters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_filters))
        return functional.relu(residual + x)


class CifarResNet(nn.Module):
    """Network of 6n+2 layers: float32 [n, 3, 32, 32] -> logits. Its parameters are in the order of our layers."""

    def __init__(self, resnet_size: int, num_classes: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks, in_filters = [], 16
        for group, filters in enumerate((16, 32, 64)):
            for i in range((resnet_size - 2) // 6):
                blocks.append(Block(in_filters, filters, 2 if group and i == 0 else 1))
                in_filters = filters
        self.blocks = nn.Sequential(*blocks)
        self.logits = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(functional.relu(self.bn(self.conv(x))))
        return self.logits(x.mean((2, 3)))


class PooledBlock(nn.Module):
    """Group of the pooled networks: GELU(BN(pool(conv))), then GELU(BN(conv)) with or without a shortcut around it."""

    def __init__(self, in_filters: int, filters: int, is_residual: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_filters, filters, 3, padding='same', bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding='same', bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        for norm in (self.bn1, self.bn2):
            norm.register_parameter('weight', None)
        self.is_residual = is_residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.bn1(functional.max_pool2d(self.conv1(x), 2)))
        y = self.conv2(x)
        return functional.gelu(self.bn2(x + y if self.is_residual else y))


def pooled_network(is_residual: bool = True) -> nn.Sequential:
    """Return resnet8_pooled, or without shortcuts airbench94's network (arXiv:2404.00498), with a bias in its head."""
    widths = (24, 64), (64, 256), (256, 256)
    groups = (PooledBlock(*pair, is_residual) for pair in widths)
    network = nn.Sequential(nn.Conv2d(3, 24, 2), nn.GELU(), *groups, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10))
    network[0].weight.requires_grad = False
    return network


def to_torch(images: np.ndarray) -> torch.Tensor:
    """Convert float32 images [n, h, w, c] to a tensor [n, c, h, w] in channels_last memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def import_torchvision() -> types.ModuleType:
    """Return torchvision, even if its compiled operators, which nothing here uses, belong to another torch."""
    with contextlib.suppress(ImportError, RuntimeError):
        return importlib.import_module('torchvision')
    for module in [module for module in sys.modules if module.startswith('torchvision')]:
        del sys.modules[module]
    name = 'torchvision._meta_registrations'  # this import fails without the operators
    sys.modules[name] = types.ModuleType(name)
    return importlib.import_module('torchvision')
