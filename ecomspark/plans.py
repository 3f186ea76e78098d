"""What a run would do: counted, shown, saved, and the versions of a saved plan for the run that follows it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pyspark.sql import Row

from ecomspark.errors import ConfigError
from ecomspark.tables import Snapshot

_BYTES_A_TOKEN = 4.0  # a guess for English, until a run has counted


@dataclass(frozen=True)
class Estimate:
    """What the pairs would cost, by the pace of the last run that scored any. `is_measured`: whether there was one.

    `device_hours`: of all workers together, loading included.
    """

    tokens: int
    seconds: float | None
    device_hours: float | None
    is_measured: bool
    by_run: str | None = None

    @classmethod
    def of(cls, over: Iterable[Row], pairs: int, text_bytes: int) -> "Estimate":
        """From earlier runs, latest first, and the bytes of the texts to read."""
        for row in over:
            rows, seconds = row["rows"], row["seconds"]
            scored = rows.get("scored", 0) + rows.get("failed", 0)
            if not scored or not rows.get("model_tokens") or not rows.get("text_bytes"):
                continue
            tokens = round(text_bytes * rows["model_tokens"] / rows["text_bytes"])
            share = tokens / rows["model_tokens"]
            busy = sum(seconds.get(f"score.{part}", 0.0) for part in ("tokenising", "forward", "loading"))
            return cls(tokens, round(seconds["score"] * share, 1), round(busy * share / 3600, 4), True, row["run_id"])
        return cls(round(text_bytes / _BYTES_A_TOKEN), None, None, pairs == 0)


@dataclass(frozen=True)
class Plan:
    """What a run would do now. `counts`, `fields`: None where it cannot be known without the change feed. `covers`: see
    `open_run`."""

    job: str
    as_of: date | None
    settings_digest: str
    inputs: Mapping[str, Mapping[str, str | int]]
    covers: Mapping[str, str]
    counts: Mapping[str, int | None]
    fields: Mapping[str, int] | None = None
    estimate: Estimate | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "as_of": self.as_of.isoformat() if self.as_of else None}


def as_lines(plan: Plan) -> list[str]:
    """The plan in lines for a person."""
    lines = [f"{plan.job}, as of {plan.as_of}"]
    lines += [
        f"  {name.replace('_', ' '):<28}{'not known' if count is None else f'{count:,}':>14}"
        for name, count in plan.counts.items()
    ]
    if plan.fields is None:
        lines.append("  everything is compared: as asked, as the first time, or without a change feed")
    elif plan.fields:
        lines.append("  caused by changes of items in: " + ", ".join(f"{f} {n:,}" for f, n in plan.fields.items()))
    if plan.estimate is not None:
        lines.append(f"  {'tokens, about':<28}{plan.estimate.tokens:>14,}")
        if plan.estimate.seconds is not None:
            lines.append(
                f"  {'seconds, about':<28}{plan.estimate.seconds:>14,.1f}   {plan.estimate.device_hours:,.4f} device "
                f"hours, by the pace of run {plan.estimate.by_run}"
            )
        elif not plan.estimate.is_measured:
            lines.append("  how long it takes is not known: no run of this job has scored anything yet")
    return lines


def save(plan: Plan, path: Path) -> None:
    """Write the plan to a file for `run --plan`. Raises ConfigError when it cannot be written."""
    try:
        path.write_text(json.dumps(plan.as_json(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"plan {path}: cannot be written ({error.strerror})") from None


def read_pins(
    path: Path, job: str, settings_digest: bytes, as_of: date | None
) -> tuple[dict[str, Snapshot], date | None]:
    """The versions and the day of a saved plan.

    Raises ConfigError when the file is not a plan, or one of another job, other settings or another day.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        inputs = {name: Snapshot(str(at["table_id"]), int(at["version"])) for name, at in saved["inputs"].items()}
        day = date.fromisoformat(saved["as_of"]) if saved["as_of"] else None
        of_job, digest = str(saved["job"]), str(saved["settings_digest"])
    except OSError as error:
        raise ConfigError(f"plan {path}: cannot be read ({error.strerror}); save one with `ecomspark plan`") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"plan {path}: expected what `ecomspark plan JOB --save FILE` writes") from None
    if of_job != job:
        raise ConfigError(f"plan {path}: expected one of {job}, found one of {of_job}")
    if digest != settings_digest.hex():
        raise ConfigError(
            f"plan {path}: made with settings {digest}, asked for now with {settings_digest.hex()}; plan again"
        )
    if as_of is not None and as_of != day:
        raise ConfigError(f"plan {path}: made as of {day}, asked for now as of {as_of}; plan again")
    return inputs, day


def as_pins(inputs: Mapping[str, Snapshot | None]) -> dict[str, dict[str, str | int]]:
    """Versions as a plan's file has them."""
    return {name: {"table_id": at.table_id, "version": at.version} for name, at in inputs.items() if at}
