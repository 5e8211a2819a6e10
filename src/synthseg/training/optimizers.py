"""Optimisers of the training loop: Adam as in the paper, and Muon for runs that can afford few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from synthseg.training.recipe import OptimizerConfig

# Quintic iteration x -> a x + b x^3 + c x^5 on singular values: coefficients chosen by K. Jordan (2024) for a steep
# start; after five rounds every singular value of a matrix of norm one lies in about [0.7, 1.2], which is enough here.
_ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
_UPDATE_RMS = 0.2  # root mean square of an update in units of the rate: about Adam's, so both take the same rates


def make_optimizer(config: OptimizerConfig, network: nn.Module) -> optim.Optimizer:
    """The recipe's optimiser over all parameters of a network.

    ``muon`` takes the inner convolutions; the first convolution, the head, biases and norms stay with Adam, whose
    assumptions fit them better (K. Jordan 2024). Epsilon is Keras' (reference 5.2), torch's differs at the start only.
    """
    if config.optimizer == "adam":
        fused = any(p.is_cuda for p in network.parameters())  # looks at the guard's flag by itself
        return optim.Adam(network.parameters(), lr=config.learning_rate, eps=1e-7, fused=fused)
    kernels = [p for p in network.parameters() if p.ndim == 5]
    outer = {id(kernels[0]), id(kernels[-1])} if kernels else set()
    inner = [p for p in kernels if id(p) not in outer]
    chosen = {id(p) for p in inner}
    rest = [p for p in network.parameters() if id(p) not in chosen]
    return Muon(inner, rest, lr=config.learning_rate)


class Muon(optim.Optimizer):
    """Momentum whose matrices are made orthogonal before they are applied; Adam for the remaining parameters.

    A convolution's kernel [C_out, C_in, ...] counts as the matrix [C_out, C_in * taps].
    Source: K. Jordan et al. 2024 (Muon); update size by J. Liu et al. 2025 (arXiv 2502.16982, section 2.2), so that
    learning rates mean what they mean for Adam.

    Args:
        matrices: parameters of at least two axes.
        others: parameters for Adam.
        lr: of both; ``momentum`` is Nesterov's.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
    ) -> None:
        groups = [
            {"params": list(matrices), "kind": "muon"},
            {"params": list(others), "kind": "adam"},
        ]
        super().__init__(
            [group for group in groups if group["params"]],
            {"lr": lr, "momentum": momentum, "beta1": betas[0], "beta2": betas[1], "eps": eps},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            update = self._matrix if group["kind"] == "muon" else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    @staticmethod
    def _matrix(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonal(gradient.lerp(momentum, group["momentum"]).flatten(1))
        scale = _UPDATE_RMS * math.sqrt(max(direction.shape))
        parameter.add_(direction.view(parameter.shape), alpha=-group["lr"] * scale)

    @staticmethod
    def _adam(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.zeros((), device=gradient.device)  # read by nobody on the host
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        count = state["step"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - group["beta1"])
        square.lerp_(gradient.square(), 1 - group["beta2"])
        spread = (square / (1 - group["beta2"] ** count)).sqrt_().add_(group["eps"])
        parameter.sub_(mean / spread * (group["lr"] / (1 - group["beta1"] ** count)))


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with orthonormal rows (or columns, if there are fewer): [R, C] float32 -> the same.

    Newton-Schulz multiplies from the left by polynomials of the Gram matrix, which commute: their product is built
    from the small Gram matrix, and the wide matrix itself is touched twice instead of ten times.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(_ROUNDS):
        factor = _A * identity + _B * gram + _C * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.T if tall else x
