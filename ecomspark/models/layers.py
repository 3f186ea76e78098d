"""What of a model learns, and how fast: frozen layers, the head alone, LoRA; a rate a layer."""

import re
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from ecomspark.models.options import Training


def layers_of(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """The transformer's layers, lowest first, and the name of their list within the model.

    Raises ValueError when the architecture has no such list (ALBERT's layers share their weights).
    """
    count = int(model.config.num_hidden_layers)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(f"{type(model).__name__}: no list of {count} layers; leave frozen_layers, layer_rate and lora")


def choose(model: Any, settings: Training) -> Any:
    """Let learn what the settings say; the model that `merged` takes apart again. Dropout is set, too.

    Raises ValueError when more layers are to stay as they are than there are.
    """
    if settings.dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = settings.dropout
    if settings.trains == "all":
        model.get_input_embeddings().weight.requires_grad_(settings.trains_word_vectors)
        _freeze(model, settings.frozen_layers)
        return model
    name, layers = layers_of(model)
    of_head = _head(model, name)
    changed = model
    if settings.trains == "lora":
        linear = [f"{name}.{inner}" for inner, of in layers.named_modules() if isinstance(of, torch.nn.Linear)]
        lora = settings.lora
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=linear)
        changed = get_peft_model(model, config)
    else:
        model.requires_grad_(False)
    for parameter in of_head.values():
        parameter.requires_grad_(True)
    return changed


def merged(changed: Any) -> Any:
    """The model with LoRA's changes in its own weights; any other as it is."""
    return changed.merge_and_unload() if hasattr(changed, "merge_and_unload") else changed


def rates(model: Any, settings: Training) -> dict[str, float]:
    """Rates by pattern of parameter names: the head's, and each layer's as a share of the next higher one's (Howard &
    Ruder 2018). Empty where all have one rate."""
    if settings.layer_rate == 1.0 and settings.head_rate == 1.0:
        return {}
    name, layers = layers_of(model)
    found = {}
    for depth in range(len(layers)):
        rate = settings.learning_rate * settings.layer_rate ** (len(layers) - 1 - depth)
        found[rf"{re.escape(name)}\.{depth}\."] = rate
    found[r"(^|\.)embeddings\."] = settings.learning_rate * settings.layer_rate ** len(layers)
    for of_head in _head(model, name):
        found[rf"(^|\.){re.escape(of_head)}$"] = settings.learning_rate * settings.head_rate
    return found


def _head(model: Any, layers: str) -> dict[str, torch.nn.Parameter]:
    """What stands above the layers: a pooler, a last norm, the classifier."""
    below = (f"{layers}.", "embeddings.")
    return {name: of for name, of in model.named_parameters() if below[0] not in name and below[1] not in name}


def _freeze(model: Any, count: int) -> None:
    if not count:
        return
    name, layers = layers_of(model)
    if count > len(layers):
        raise ValueError(f"frozen_layers: expected at most {len(layers)}, found {count}")
    for parameter_name, parameter in model.named_parameters():
        is_low = any(parameter_name.startswith(f"{name}.{depth}.") for depth in range(count))
        if is_low or "embeddings." in parameter_name:
            parameter.requires_grad_(False)
