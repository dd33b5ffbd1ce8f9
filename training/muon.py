"""Muon, the optimizer of the layers' matrices, in float32.

`torch.optim.Muon` orthogonalises in bfloat16, which processors without bfloat16 units emulate: measured on such a
machine it took eight times as long as the forward and backward pass together. This one stays in float32 and handles
all matrices of one shape in one batch.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of [n, rows, columns] towards 1 by a quintic Newton-Schulz iteration.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, scaled to the root mean square of an Adam step (arXiv 2502.16982).

    Args:
        matrices: two-dimensional parameters.
        lr: learning rate, as for AdamW.
        momentum: of the Nesterov average.
        weight_decay: decoupled.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update from the gradients."""
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is None:  # every row of the batch skipped its layer
                    continue
                same_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in same_shape.items():
                moving = []
                for matrix in matrices:
                    average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    average.lerp_(matrix.grad, 1 - group["momentum"])
                    moving.append(matrix.grad.lerp(average, group["momentum"]))
                scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for matrix, update in zip(matrices, orthogonalize(torch.stack(moving)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)
