"""torch's linear layer, computed by the faster of the two libraries that torch has for processors. Torch only."""

from typing import Any

import torch
from torch import Tensor, nn


def _cpu_name() -> str:
    """Return the processor's name, empty in an older torch, which does not tell it."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return str(capabilities.get("cpu_name", ""))


# For float32 torch asks MKL, which uses AVX2 on AMD's processors. oneDNN uses AVX-512 and takes half the time on two
# Zen 5 cores: 0.43 instead of 0.97 ms for [512, 784] by [784, 256], and backward as well. Zen 4 needs two turns for 512
# bits: there oneDNN takes 0.9 to 1.1 of MKL's time for an epoch of the default network, and 0.6 to 1.0 for layers of
# 2,000 by 1,500. On Intel's, where MKL uses AVX-512 too, it takes 1.1 to 1.8 times as long (two cores with AMX).
IS_FASTER = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and _cpu_name().startswith("AMD")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)

# Multiplications: 256 images through a layer of 256 by 64. Below, looking up oneDNN's kernel costs
# more than it saves: 40 us.
LEAST_WORK = 4_000_000


class Linear(nn.Linear):
    """A `torch.nn.Linear` that oneDNN computes where it is faster: in float32, its sums in another order.

    That is where an AMD processor with AVX-512 has much to do. With other precisions, layouts and devices, under
    torch.func, torch.autograd.forward_ad, torch.export, torch.compile, torch.jit and autocast, and with
    `torch.backends.mkldnn.enabled = False`, it is `torch.nn.Linear` to the bit.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name for it)
        """Features [B, in_features] -> [B, out_features]."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return nn.functional.linear(input, self.weight, self.bias)
        weight, bias = self.weight, self.bias  # once: a parametrization computes them anew each time
        if _is_faster_for(input, weight, bias):
            outputs: Tensor = _ByOneDNN.apply(input, weight, bias)
            return outputs
        return nn.functional.linear(input, weight, bias)


def _is_faster_for(features: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        IS_FASTER
        and bool(torch.backends.mkldnn.enabled)
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and _is_plain(features)
        and _is_plain(weight)
        and (bias is None or (_is_plain(bias) and bias.shape == weight.shape[:1]))
        and features.shape[1:] == weight.shape[1:]
        and len(features) * weight.numel() >= LEAST_WORK
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        isinstance(tensor, Tensor)  # not a stand-in, of which torch.fx makes a graph
        and tensor.is_cpu
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
    )


class _ByOneDNN(torch.autograd.Function):
    """left [M, K] and right [N, K] -> left @ right.T + bias [M, N].

    torch has the operation for its compiler, without gradients. A product's gradients are products themselves, so
    backward applies this very function, to any order.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, right)
        if not (right.is_contiguous() or right.t().is_contiguous()):
            right = right.contiguous()
        bias = None if bias is None else bias.contiguous()  # it is read as if it were
        product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        of_left, of_right, of_bias = ctx.needs_input_grad
        return (
            _ByOneDNN.apply(grad, right.t(), None) if of_left else None,
            _ByOneDNN.apply(grad.t(), left.t(), None) if of_right else None,
            grad.sum(dim=0) if of_bias else None,
        )
