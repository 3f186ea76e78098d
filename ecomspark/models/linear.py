"""Linear layers at the speed of a CPU: oneDNN's fp32, and 8-bit whole numbers.

torch's own fp32 layer calls MKL, which takes its slower kernels on CPUs that are not Intel's: on an AMD EPYC with
AVX-512 oneDNN, which torch brings along, multiplied 2.3 times as fast (NOTES.md).

Of int8: one scale a token and one a row of weights, each the largest magnitude / 127 (symmetric, Jacob et al. 2018).
torch's own dynamic quantisation takes one scale over the whole batch, so that a score would depend on its neighbours,
and is on its way out of torch; products are exact in 32 bits here, so a token's outcome depends on that token alone.
"""

import platform

import torch

_TINY = torch.finfo(torch.float32).tiny


class OneDnnLinear(torch.nn.Module):
    """Stands in for a linear layer in fp32, over the same weights."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = inputs.reshape(-1, inputs.shape[-1])
        outputs: torch.Tensor = torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, "none", [], "")
        return outputs.view(*inputs.shape[:-1], -1)


class Int8Linear(torch.nn.Module):
    """Stands in for a linear layer. Shapes as there; what goes in and comes out is fp32."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(_TINY) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = inputs.reshape(-1, inputs.shape[-1])
        scale = tokens.abs().amax(dim=1, keepdim=True).clamp_min_(_TINY).div_(127)
        whole = (tokens * scale.reciprocal()).round_().to(torch.int8)
        products = torch._int_mm(whole, self.weight) * scale
        outputs = products.mul_(self.scale) if self.bias is None else torch.addcmul(self.bias, products, self.scale)
        return outputs.view(*inputs.shape[:-1], -1)


def has_onednn() -> bool:
    """Whether oneDNN multiplies in fp32 here: an x86-64 CPU, and a torch that was built with it."""
    return platform.machine() in ("x86_64", "AMD64") and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def replace_linear(model: torch.nn.Module, kind: type[OneDnnLinear] | type[Int8Linear]) -> None:
    """Put a layer of that kind in the place of every linear layer in `model`."""
    for name, child in model.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(model, name, kind(child))
        else:
            replace_linear(child, kind)
