"""The plain training loop that every path through the engine must agree with: short enough to check by eye."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Distance = Callable[[Tensor, Tensor], Tensor]


def train(
    network: nn.Module,
    coordinates: Tensor,
    targets: Tensor,
    optimiser: torch.optim.Optimizer,
    steps: int,
    *,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None,
    distance: Distance = nn.functional.mse_loss,
) -> list[float]:
    """Fits ``network(coordinates)`` (N, C) to ``targets`` (N, C) and returns the loss before each step."""
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = distance(network(coordinates), targets)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if scheduler is not None:
            scheduler.step(losses[-1])
    return losses
