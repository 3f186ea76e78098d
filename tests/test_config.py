"""Settings: every fault named with its place, all at once; a template that explains each key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from pydantic import ValidationError

from ecomspark import config, launch
from ecomspark.cli import main, pipeline
from ecomspark.config import Settings, setting
from ecomspark.errors import ConfigError
from ecomspark.pipelines import finetune_cross_encoder, rank_candidates, score_candidates

JOBS = launch.jobs()


class Sizes(config.Section):
    width: int = setting(3, "how wide", ge=1)


class Config(Settings):
    sizes: Sizes = setting(Sizes(), "sizes")
    length: int = setting(..., "how long", unit="metres")
    colour: str = setting("red", "which colour", decides=False)


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return config.load(path, "paint", Config, ["paint", "sand"], overrides)


def test_shared_keys_and_the_jobs_section_become_one(tmp_path: Path) -> None:
    loaded = load(tmp_path, "warehouse: w\nbuckets: 8\npaint: {length: 4, sizes: {width: 2}}\nsand: {grain: 80}\n")
    assert (loaded.warehouse, loaded.buckets, loaded.length, loaded.sizes.width) == ("w", 8, 4, 2)
    with pytest.raises(ValidationError):
        loaded.length = 5  # frozen


def test_every_fault_is_named_with_its_place_at_once(tmp_path: Path) -> None:
    faulty = "warehosue: w\npaint: {lenght: 4, sizes: {widht: 2}, colour: 7, buckets: 3}\nsnad: {}\n"
    with pytest.raises(ConfigError) as error:
        load(tmp_path, faulty)
    message = str(error.value)
    for fault in (
        "settings.yaml: warehosue: unknown; did you mean warehouse?",
        "settings.yaml: snad: unknown; did you mean sand?",
        "settings.yaml: paint.lenght: unknown; did you mean length?",
        "settings.yaml: paint.sizes.widht: unknown; did you mean width?",
        "settings.yaml: paint.length: missing; `ecomspark config paint` says what it means",
        "settings.yaml: warehouse: missing",
        "settings.yaml: paint.colour: Input should be a valid string; found 7",
        "settings.yaml: paint.buckets: a shared key; it stands at the top of the file, not in a section",
    ):
        assert fault in message, message


def test_overrides_are_laid_over_and_checked_alike(tmp_path: Path) -> None:
    text = "warehouse: w\npaint: {length: 4}\n"
    assert load(tmp_path, text, "paint.length=9", "paint.sizes.width=5", "warehouse=/x").sizes.width == 5
    assert load(tmp_path, text, "paint.colour='10'").colour == "10"
    with pytest.raises(ConfigError, match=r"paint\.lenth: unknown; did you mean length"):
        load(tmp_path, text, "paint.lenth=9")
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        load(tmp_path, text, "paint.length")
    with pytest.raises(ConfigError, match="length has a value, not keys"):
        load(tmp_path, text, "paint.length.deep=1")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("warehouse: [", "not YAML"),
        ("- a\n- b", "expected keys with values, found list"),
        ("paint: 3\nwarehouse: w", "paint: expected keys with values, found int"),
        ("warehouse: w\nwarehouse: v", "key given twice: warehouse"),
        ("warehouse: w\npaint: {length: 4, length: 5}", "key given twice: length"),
        ("warehouse: w\npaint: {length: 4}\nlanguages: {uk: klingon}", "no Snowball stemmer named klingon"),
        ("warehouse: w\npaint: {length: 4}\ngains: esky", "no preset named esky"),
        ("warehouse: w\npaint: {length: 4}\ngains: {0: 0, 1: 2}", "the best must be 1"),
        ("warehouse: w\npaint: {length: 4}\nrecipe: {number: 2}", "recipe.number"),
    ],
)
def test_what_is_no_settings_file_is_said(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(tmp_path, text)


def test_a_missing_file_is_said() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(Path("no/such.yaml"), "paint", Config, ["paint"])


def test_only_keys_that_decide_output_are_in_the_digest(tmp_path: Path) -> None:
    plain = load(tmp_path, "warehouse: w\npaint: {length: 4}")
    assert (
        load(tmp_path, "warehouse: v\nbuckets: 3\npaint: {length: 4, colour: blue}").deciding_digest()
        == plain.deciding_digest()
    )
    for change in ("paint: {length: 5}", "paint: {length: 4, sizes: {width: 9}}", "paint: {length: 4}\ngains: linear"):
        assert load(tmp_path, f"warehouse: w\n{change}").deciding_digest() != plain.deciding_digest()
    assert plain.deciding_digest("a") != plain.deciding_digest()


@pytest.mark.parametrize("job", JOBS)
def test_the_template_names_every_key_and_is_itself_settings(job: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["config", job]) == 0
    printed = capsys.readouterr().out
    kind = pipeline(job).Config
    for name, field in kind.model_fields.items():
        assert f"{name}:" in printed
        assert field.description
        assert field.description in printed
        assert "decides" in field.json_schema_extra, f"{job}.{name}: made without setting(...)"
    document = yaml.safe_load(printed)
    required = {
        "warehouse": "w", "columns": {}, "source_name": "s", "judgment_set": "s", "checkpoint": "c", "base": "b",
        "name": "n", "encoder": "e", "a": "base", "b": "tuned",
        "source": "folder" if job == "import_checkpoint" else {"format": "parquet", "path": "p"},
    }  # fmt: skip
    section = document[job] or {}
    for keys in (document, section):
        keys.update(
            {key: value for key, value in required.items() if key in keys and (key == "source" or not keys[key])}
        )
    path = tmp_path / "template.yaml"
    path.write_text(yaml.safe_dump({**document, job: section}))
    loaded = config.load(path, job, kind, JOBS)
    for name, field in kind.model_fields.items():
        if not field.is_required() and name not in required:
            assert getattr(loaded, name) == field.get_default(call_default_factory=True), name


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.name)
def test_the_settings_files_of_the_project_are_valid(path: Path) -> None:
    sections = set(yaml.safe_load(path.read_text())) & set(JOBS)
    assert sections
    for job in sections:
        config.load(path, job, pipeline(job).Config, JOBS)


def test_policies_refuse_what_cannot_be_ranked_by() -> None:
    shared = {"warehouse": "w", "checkpoint": "c"}
    with pytest.raises(ValidationError, match="edges must rise"):
        rank_candidates.Config(**shared, variants={"main": {"bands": [0.5, 0.2]}})
    weights = dict.fromkeys(("relevance", "price", "sold", "rating", "freshness"), 0)
    with pytest.raises(ValidationError, match="one weight at least"):
        rank_candidates.Config(**shared, variants={"main": {"weights": weights}})
    with pytest.raises(ValidationError):
        rank_candidates.Config(**shared, variants={"../main": {}})
    with pytest.raises(ValidationError, match="bm25"):
        rank_candidates.Config(**shared, variants={"main": {"proposed_by": ["bm52"]}})
    with pytest.raises(ValidationError, match="leaves no room behind 30 of a query"):
        finetune_cross_encoder.Config(
            warehouse="w", base="b", name="n", judgment_set="s", max_tokens=32, query_max_tokens=30
        )
    with pytest.raises(ValidationError):
        score_candidates.Config(**shared, token_budget=0)


@pytest.mark.parametrize(
    ("name", "is_safe"),
    [("run-1_a.b=c", True), *((n, False) for n in ("..", "a..b", "a/b", "", "é", "a" * 129, ".hidden", "a b", "a\n"))],
)
def test_names_are_safe_in_paths(name: str, is_safe: bool) -> None:
    assert config.is_name(name) == is_safe


def test_gains_may_start_above_zero_but_are_of_whole_grades(tmp_path: Path) -> None:
    text = "warehouse: w\npaint: {length: 4}\ngains: "
    assert load(tmp_path, text + "{1: 0, 2: 0.3333, 3: 1}").gains == {1: 0.0, 2: 0.3333, 3: 1.0}
    with pytest.raises(ConfigError, match="gains are of whole grades"):
        load(tmp_path, text + "{1: 0, 1.5: 0.2, 3: 1}")


def test_an_alias_is_changed_in_one_place_only(tmp_path: Path) -> None:
    text = "warehouse: w\npaint: {length: 4, sizes: &sizes {width: 2}}\nsand: {grain: *sizes}\n"
    (tmp_path / "shared.yaml").write_text(text)
    changed = config._document(tmp_path / "shared.yaml", ["paint.sizes.width=7"])
    assert (changed["paint"]["sizes"]["width"], changed["sand"]["grain"]["width"]) == (7, 2)
