"""The GPUs that torch sees on this host. `python -m ecomspark.models.gpus` prints them as JSON: for processes that will
fork, and so must not import torch themselves."""

import json

import torch


def gpus() -> dict[str, list[str] | str | None]:
    """Their names, in order of their addresses, and the CUDA that torch was built for; None: built for CPU only."""
    names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda}


if __name__ == "__main__":
    print(json.dumps(gpus()))
