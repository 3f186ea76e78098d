"""Who may import whom: the table of the house plan, walked with ast. No import of ours is executed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ecomspark"

# A module may import only modules of lower layers, or of its own package (a folder below) or its own layer where said.
LAYERS = {
    "errors": 0,
    "text": 1, "metrics": 1, "nearest": 1, "schemas": 1, "preflight": 1, "sizes": 1,
    "augmentation": 2, "negatives": 2, "config": 2, "evaluation": 2, "findings": 2, "near_duplicates": 2, "slices": 2,
    "models": 3, "tables": 3, "paired": 3,
    "plans": 4, "features": 4, "chances": 4, "resources": 4, "ledger": 4, "parts": 4,
    "holding": 5, "why": 5, "scoring": 5, "pseudonyms": 5,
    "runs": 6, "next_items": 6,
    "launch": 7, "importing": 7, "training": 7, "tracking": 7, "embedding": 7, "landing": 7,
    "behaviour": 7,
    "splitting": 8, "retrieval": 8,
    "daemon": 9, "demo_data": 9, "pipelines": 9, "holds": 9, "model_list": 9,
    "doctor": 10, "explain": 10, "compare": 10,
    "benchmark": 11,
    "demo": 12,
    "cli": 13,
}  # fmt: skip

# What each side of the two walls may not touch.
SPARK = {"pyspark", "py4j", "delta"}
MODELS = {"torch", "transformers", "sentence_transformers", "safetensors", "tokenizers", "accelerate", "peft"}
PURE = {
    "text", "metrics", "config", "schemas", "errors", "preflight", "evaluation", "findings",
    "sizes", "augmentation", "negatives", "near_duplicates", "nearest", "slices", "paired", "chances",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; write the whole name"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(name: str, path: Path) -> Iterator[str]:
    mine = name.split(".")[0]
    for target in imported(path):
        top = target.split(".")[0]
        if mine == "models" and top in SPARK:
            yield f"{name} imports Spark ({target}): model code runs on machines without Java"
        if mine not in ("models", "cli") and top in MODELS:
            yield f"{name} imports {top}: only models/ knows it"
        if mine != "tables" and top == "delta":
            yield f"{name} imports delta: only tables/ knows it"
        if mine in PURE and top in SPARK:
            yield f"{name} imports Spark ({target}): it is pure"
        if top != "ecomspark":
            continue
        other = target.split(".")[1] if "." in target else ""
        if other in LAYERS and other != mine and LAYERS[other] >= LAYERS[mine]:
            yield f"{name} imports {target}: imports point downwards only"
        if mine == "pipelines" and other == "pipelines" and name != "pipelines":
            yield f"{name} imports {target}: jobs meet only in tables"


def test_every_module_has_a_layer() -> None:
    tops = {name.split(".")[0] for name, _ in modules() if name}
    assert tops - set(LAYERS) == set(), "give the new module a layer here and a line in the README's tree"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_downwards(name: str, path: Path) -> None:
    if name:
        assert list(faults(name, path)) == []


def test_the_walk_finds_a_broken_wall(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f():\n    import torch\n    from pyspark.sql import functions\n    import ecomspark.cli\n")
    assert any("only models/ knows it" in fault for fault in faults("features.broken", broken))
    assert any("imports Spark" in fault for fault in faults("models.broken", broken))
    assert any("downwards only" in fault for fault in faults("models.broken", broken))
