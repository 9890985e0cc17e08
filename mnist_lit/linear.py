"""torch's linear layer, computed by the faster of the two libraries that torch has for processors. Torch only."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# For float32 torch asks MKL, which has no AVX-512 for AMD's processors. oneDNN has it, and takes half the time there:
# on two Zen 5 cores 0.43 in place of 0.97 ms for [512, 784] by [784, 256], and backward as well.
IS_FASTER = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"

# Multiplications: 256 images through a layer of 256 by 64. With fewer, its 40 us to look a kernel up are not won back.
LEAST_WORK = 4_000_000


class Linear(nn.Linear):
    """A `torch.nn.Linear` that oneDNN computes where it is faster: in float32, its sums in another order.

    That is where a processor with AVX-512 has much to do. Elsewhere, in other precisions, in a program that traces or
    compiles it, and with `torch.backends.mkldnn.enabled = False`, it is `torch.nn.Linear` to the bit.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name for it)
        """Features [B, in_features] -> [B, out_features]."""
        if self._is_faster_for(input):
            outputs: Tensor = _ByOneDNN.apply(input, self.weight, self.bias)
            return outputs
        return super().forward(input)

    def _is_faster_for(self, features: Tensor) -> bool:
        return (
            IS_FASTER
            and bool(torch.backends.mkldnn.enabled)
            # First, since an exporter takes a question about the batch's size for a condition on it.
            and not torch.compiler.is_compiling()
            and torch._C._get_tracing_state() is None
            and features.is_cpu
            and features.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and features.shape[1:] == self.weight.shape[1:]
            and len(features) * self.weight.numel() >= LEAST_WORK
        )


class _ByOneDNN(torch.autograd.Function):
    """An operation that torch keeps for its compiler, hence has no gradients for."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(features, weight)
        return _product(features, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        features, weight = ctx.saved_tensors
        of_features, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if of_features else None,
            _product(grad.t(), features.t()) if of_weight else None,
            grad.sum(dim=0) if of_bias else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[M, K] and [N, K] -> left @ right.T + bias [M, N]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product
