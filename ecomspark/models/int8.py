"""Linear layers in 8-bit whole numbers, for CPUs with instructions for them (AVX-512 VNNI, AVX-VNNI, Arm i8mm).

One scale a token and one a row of weights, each the largest magnitude / 127 (symmetric, Jacob et al. 2018). torch's own
dynamic quantisation takes one scale over the whole batch, so that a score would depend on its neighbours, and is on its
way out of torch; products are exact in 32 bits here, so a token's outcome depends on that token alone.
"""

import torch


class Int8Linear(torch.nn.Module):
    """Stands in for a linear layer. Shapes as there; what goes in and comes out is fp32."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = inputs.reshape(-1, inputs.shape[-1])
        scale = tokens.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        whole = (tokens / scale).round_().to(torch.int8)
        outputs = torch._int_mm(whole, self.weight).float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            outputs += self.bias
        return outputs.view(*inputs.shape[:-1], -1)


def quantise(model: torch.nn.Module) -> None:
    """Put an `Int8Linear` in the place of every linear layer in `model`."""
    for name, child in model.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(model, name, Int8Linear(child))
        else:
            quantise(child)
