"""YAML to frozen settings: shared keys on top, one section per job. Every fault is named with its place, all at once.

A pipeline declares `class Config(Settings)` with `setting(...)` fields. Nothing below a pipeline's `run` receives it.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from ecomspark.errors import ConfigError
from ecomspark.text import Analyser, TextRecipe, languages, settings_digest

NAME_PATTERN = r"^[A-Za-z0-9_=-][A-Za-z0-9_.=-]{0,127}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def is_name(text: str) -> bool:
    """Whether a name is safe in paths and statements."""
    return re.fullmatch(NAME_PATTERN, text) is not None and ".." not in text


def setting(default: Any = ..., meaning: str = "", *, unit: str = "", decides: bool = True, **limits: Any) -> Any:
    """A key of a section. `decides`: whether it changes what is published; only then is it part of identities."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit, "decides": decides}, **limits)


class Section(BaseModel):
    """Keys that are read together. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


GAIN_PRESETS: dict[str, dict[int, float]] = {
    "exponential": {0: 0.0, 1: 1 / 7, 2: 3 / 7, 3: 1.0},  # (2^grade - 1) / 7, Burges et al. 2005
    "linear": {0: 0.0, 1: 1 / 3, 2: 2 / 3, 3: 1.0},
    "esci": {0: 0.0, 1: 0.01, 2: 0.1, 3: 1.0},  # Reddy et al. 2022: irrelevant, complement, substitute, exact
}


class Bm25(Section):
    """Lexical match: BM25 over several fields, their term frequencies weighted before they saturate (BM25F)."""

    k1: float = setting(1.2, "how soon repeated terms stop counting", gt=0)
    b: float = setting(0.75, "how much long fields are held against an item", ge=0, le=1)
    field_weights: dict[Literal["title", "brand", "category"], Annotated[float, Field(ge=0)]] = setting(
        {"title": 1.0, "brand": 0.5, "category": 0.5}, "weight of a term by field", min_length=1
    )
    statistics_version: int = setting(
        1, "which collection_statistics; made when missing: raise it to refresh them, and when `languages` change", ge=1
    )


class LeaseSettings(Section):
    """Who may publish to a table is written in `leases`, for a time, and renewed while the run lives."""

    seconds: float = setting(
        600.0, "how long a lease lasts that is not renewed; several times a task's length", unit="seconds", gt=0
    )
    wait_seconds: float = setting(
        0.0, "how long to wait for one that is taken; 0: end with status 4", unit="seconds", ge=0
    )


class Settings(Section):
    """The shared keys, which stand at the top of a settings file. A job's `Config` adds those of its section."""

    warehouse: str = setting(
        ..., "where the tables are: a folder or object-store prefix, or catalog:NAME.SCHEMA", decides=False
    )
    models_folder: Path = setting(Path("models"), "folder that holds every checkpoint", decides=False)
    buckets: int = setting(
        64,
        "parts that a large table is laid out in when it is made; kept by the table from then on",
        decides=False,
        ge=1,
        le=256,
    )
    spark_properties: Path | None = setting(
        None, "Spark's own settings when `ecomspark run` starts Spark; spark-submit brings its own", decides=False
    )
    data_types: dict[Name, Literal["fp32", "bf16", "fp16", "int8"]] = setting(
        {}, "what a checkpoint computes in, by its name, where not what its card says; another scorer of its weights"
    )
    leases: LeaseSettings = setting(LeaseSettings(), "one run at a time publishes to a table", decides=False)
    plan: Path | None = setting(None, "a saved plan, whose versions are read: `--plan FILE`", decides=False)
    recipe: TextRecipe = setting(TextRecipe(), "how the texts that models read are made")
    languages: dict[str, str | None] = setting(
        {"uk": "english", "us": "english", "es": "spanish", "jp": None, "cn": None},
        "locale to the Snowball stemmer of its terms; null, or a locale not named: no stems",
    )

    bm25: Bm25 = setting(Bm25(), "lexical match")
    gains: dict[int, float] = setting(
        GAIN_PRESETS["exponential"],
        f"gain by whole grade, the lowest need not be 0; or a preset: {', '.join(GAIN_PRESETS)}",
    )

    @field_validator("gains", mode="before")
    @classmethod
    def _as_gains(cls, value: Any) -> dict[int, float]:
        return as_gains(value)

    @field_validator("languages")
    @classmethod
    def _known_stemmers(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        unknown = sorted({language for language in value.values() if language and language not in languages()})
        if unknown:
            known = ", ".join(sorted(languages()))
            raise ValueError(f"no Snowball stemmer named {', '.join(unknown)}; there are {known}")
        return value

    @property
    def analysers(self) -> dict[str, Analyser]:
        """The analyser of each locale that `languages` names; any other has `Analyser()`, without stems."""
        return {locale: Analyser(language=language) for locale, language in self.languages.items()}

    def deciding_digest(self, *more: str) -> bytes:
        """128 bits over the keys that decide output and over `more` (a checkpoint's digest, say)."""
        return settings_digest({"settings": _deciding(self), "more": list(more)})


def as_gains(value: Any) -> dict[int, float]:
    """Gains by grade, from a preset's name or a mapping. ValueError unless they rise from 0 or more to 1."""
    if isinstance(value, str):
        if value not in GAIN_PRESETS:
            raise ValueError(f"no preset named {value}; there are {', '.join(GAIN_PRESETS)}")
        return GAIN_PRESETS[value]
    gains = {int(grade): float(gain) for grade, gain in dict(value).items()}
    if any(float(grade) != int(grade) for grade in dict(value)):
        raise ValueError("gains are of whole grades; what lies between two is worth what lies between their gains")
    rising = [gains[grade] for grade in sorted(gains)]
    if len(rising) < 2 or rising != sorted(rising) or rising[0] < 0 or rising[-1] != 1:
        raise ValueError("gains must not fall as the grade rises, must not be negative, and the best must be 1")
    return gains


Loaded = TypeVar("Loaded", bound=Settings)


def load(path: Path, job: str, kind: type[Loaded], jobs: Sequence[str], overrides: Sequence[str] = ()) -> Loaded:
    """The settings of `job` from a YAML file, `section.key=value` overrides laid over it; of no job, the shared ones.

    Raises ConfigError with a line for every fault: the file, the key's full path, what is wrong, and for an
    unknown key the nearest right one. Other jobs' sections are only checked to be named after a job of `jobs`.
    """
    document = _document(path, overrides)
    shared = set(Settings.model_fields)
    section = document.get(job)
    faults = [_unknown(path, str(key), [*shared, *jobs]) for key in document if key not in shared and key not in jobs]
    if section is not None and not isinstance(section, dict):
        faults.append(f"{path}: {job}: expected keys with values, found {type(section).__name__}")
        section = None
    values = {key: value for key, value in document.items() if key in shared}
    for key in set(section or {}) & shared:
        faults.append(f"{path}: {job}.{key}: a shared key; it stands at the top of the file, not in a section")
    values.update({key: value for key, value in (section or {}).items() if key not in shared})
    try:
        loaded = kind.model_validate(values)
    except ValidationError as error:
        faults.extend(_fault(path, job, kind, fault) for fault in error.errors())
    if faults:
        raise ConfigError("\n".join(sorted(faults)))
    return loaded


def sections(path: Path, jobs: Sequence[str], overrides: Sequence[str] = ()) -> list[str]:
    """The jobs that have a section in a settings file. Raises ConfigError when the file cannot be read."""
    return [str(key) for key in _document(path, overrides) if key in jobs]


def template(job: str, kind: type[Settings]) -> str:
    """A settings file for one job: every key with its meaning, unit, default and whether it decides output."""
    shared = {name: field for name, field in kind.model_fields.items() if name in Settings.model_fields}
    own = {name: field for name, field in kind.model_fields.items() if name not in shared}
    lines = [f"# Settings of {job}. Shared keys first, then the section of the job.", *_described(shared, "")]
    return "\n".join([*lines, "", f"{job}:", *(_described(own, "  ") or ["  {}"]), ""])


def _document(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What the file says, with the overrides laid over it."""
    document = _file(path)
    for override in overrides:
        _lay_over(document, override)
    return document


def _file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a settings file with --conf") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected keys with values, found {type(document).__name__}")
    return {key: _unshared(value) for key, value in document.items()}


def _unshared(value: Any) -> Any:
    """What an alias (`*name`) repeats as a value of its own: `--set` must change it in one place only."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets the last of two equal keys win in silence; a settings file must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"key given twice: {', '.join(sorted(twice))} (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


def _lay_over(document: dict[str, Any], override: str) -> None:
    place, equals, value = override.partition("=")
    if not equals or not all(place.split(".")):
        raise ConfigError(f"--set {override}: expected section.key=value")
    *parents, key = place.split(".")
    at = document
    for parent in parents:
        if at.get(parent) is None:
            at[parent] = {}
        at = at[parent]
        if not isinstance(at, dict):
            raise ConfigError(f"--set {place}: {parent} has a value, not keys")
    try:
        at[key] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {place}: the value is not YAML; quote it") from None


def _fault(path: Path, job: str, kind: type[Settings], fault: Mapping[str, Any]) -> str:
    location = [str(part) for part in fault["loc"]]
    place = ".".join(location if location and location[0] in Settings.model_fields else [job, *location])
    if fault["type"] == "extra_forbidden":
        return _unknown(path, place, _siblings(kind, location))
    if fault["type"] == "missing":
        return f"{path}: {place}: missing; `ecomspark config {job}` says what it means"
    found = json.dumps(fault["input"], default=str)
    message = fault["msg"].removeprefix("Value error, ")
    return f"{path}: {place}: {message}; found {found if len(found) < 80 else found[:80] + '…'}"


def _unknown(path: Path, place: str, right: Sequence[str]) -> str:
    wrong = place.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(right))}"
    return f"{path}: {place}: unknown; {advice}"


def _siblings(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys that might have been meant at `location`, found by walking the models along it."""
    models = [kind]
    for step in location[:-1]:
        fields = [model.model_fields[step] for model in models if step in model.model_fields]
        inner = [model for field in fields for model in _models_in(field.annotation)]
        models = inner or models
    return [field.alias or name for model in models for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return {"unit": "", "decides": True, **extra}


def _deciding(section: BaseModel) -> dict[str, Any]:
    """The values that decide output. A mapping becomes a list of pairs: its order may decide, too."""
    plain: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if not _extra(field)["decides"]:
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            plain[name] = _deciding(value)
        else:
            dumped = section.model_dump(mode="json", include={name})[name]
            plain[name] = [list(pair) for pair in dumped.items()] if isinstance(dumped, dict) else dumped
    return plain


def _described(fields: Mapping[str, FieldInfo], indent: str, given: BaseModel | None = None) -> list[str]:
    """The lines of some fields, with their defaults or, where there is one, with the values that `given` has."""
    lines: list[str] = []
    for own_name, field in fields.items():
        name, extra = field.alias or own_name, _extra(field)
        facts = [f"in {extra['unit']}"] if extra["unit"] else []
        facts.append("decides output" if extra["decides"] else "does not decide output")
        lines.append(f"{indent}# {field.description} ({'; '.join(facts)})")
        models = list(_models_in(field.annotation))
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        default = getattr(given, own_name) if given else default
        if field.annotation is not None and field.annotation in models:
            lines += [f"{indent}{name}:", *_described(models[0].model_fields, indent + "  ", default)]
        elif models and default and isinstance(default, dict):
            lines.append(f"{indent}{name}:")
            for key, value in default.items():
                lines += [f"{indent}  {key}:", *_described(models[0].model_fields, indent + "    ", value)]
        elif field.is_required() and given is None:
            lines.append(f"{indent}{name}:    # required")
            inner = [line for model in models for line in ["  NAME:", *_described(model.model_fields, "    ")]]
            lines += [f"{indent}# {line}" for line in inner]
        else:
            lines.append(f"{indent}{name}: {json.dumps(_plain(default))}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else str(value)
