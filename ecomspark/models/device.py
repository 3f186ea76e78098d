"""Where a model runs."""

import torch


def device(gpu: str | None = None) -> torch.device:
    """The GPU of that address; without one the first GPU there is, else the CPU."""
    if gpu is not None:
        return torch.device(f"cuda:{gpu}")
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
