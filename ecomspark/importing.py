"""What every import job does around its own mapping: conform, quarantine, guard, publish."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Literal, Self

from pydantic import model_validator
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Section, Settings, setting
from ecomspark.errors import ConfigError, ContractError, NewerPublished
from ecomspark.features.conform import (
    ColumnMap,
    conform,
    differences,
    healed,
    quarantined,
    reopened,
    source_key,
    usable,
)
from ecomspark.features.consents import declared
from ecomspark.features.texts import LATER_REASONS
from ecomspark.pseudonyms import Shoppers, faults_of, pseudonymised
from ecomspark.runs import Run
from ecomspark.schemas import CONSENTS, QUARANTINE, Table
from ecomspark.tables import MALFORMED, Source, Sourced

log = logging.getLogger("ecomspark")

_QUARANTINE_TRIES = 10


class ImportSettings(Settings):
    """The keys that import jobs share."""

    source: Source = setting(..., "where the rows come from")
    columns: dict[str, ColumnMap] = setting(
        ...,
        "column of ours to where it comes from: a name, or {from, separator, constant, default, cast, format, values}",
    )
    mode: Literal["snapshot", "upsert", "append"] = setting(
        "snapshot",
        "snapshot: what the source lacks is removed; upsert: nothing is removed; append: new keys only, for logs",
    )
    max_deleted_share: float = setting(
        0.2, "stop rather than remove more than this share of what is there", decides=False, ge=0, le=1
    )
    min_rows: int = setting(1, "stop when fewer rows can be used", unit="rows", decides=False, ge=0)
    max_quarantined_share: float = setting(
        0.01, "stop when more than this share of the rows cannot be used", decides=False, ge=0, le=1
    )


class Consent(Section):
    """A consent that the source's owner vouches for: every shopper in it gave it, or the law asks for none."""

    purpose: Name = setting(..., "what for, such as personalisation")
    basis: str = setting(..., "the legal basis, in words; it is kept with each shopper's consent", min_length=1)


class BehaviourSettings(ImportSettings):
    """The keys of a job that imports what shoppers did."""

    shoppers: Shoppers | None = setting(
        None, "{key_file, key_id}: the key that makes pseudonyms of shoppers' ids; null: no shopper is taken over"
    )
    consent: Consent | None = setting(
        None, "{purpose, basis}: a consent of every shopper in the source who never said anything of the purpose"
    )

    @model_validator(mode="after")
    def _has_key(self) -> Self:
        refuse_unnamed(self.columns, ("shopper_id",), self.shoppers)
        if self.consent is not None and self.shoppers is None:
            raise ValueError("consent: expected shoppers.key_file and key_id, too: nobody is known without")
        return self


def refuse_unnamed(columns: Mapping[str, ColumnMap], ours: Sequence[str], shoppers: Shoppers | None) -> None:
    """Raises ValueError when a mapping's columns that name shoppers cannot be pseudonymised."""
    if faults := faults_of(columns, ours, shoppers):
        raise ValueError("; ".join(faults))


def with_pseudonyms(
    sourced: Sourced, columns: Mapping[str, ColumnMap], ours: Sequence[str], shoppers: Shoppers
) -> tuple[Sourced, dict[str, ColumnMap]]:
    """A source in which nothing names a shopper but by a pseudonym, and the mapping to read it by; see `pseudonyms`."""
    rows, mapped = pseudonymised(sourced.rows, columns, ours, shoppers)
    return replace(sourced, rows=rows), mapped


def too_late(as_of: date | None) -> str:
    """The time at which nothing can have been said yet: two days after `as_of` begins, for hosts stand in other time
    zones."""
    return "9999-12-31" if as_of is None else (as_of + timedelta(2)).isoformat()


def declare_consents(run: Run, consent: Consent, interactions: DataFrame) -> None:
    """Append the consent of every shopper among the imported `interactions` who never said anything of its purpose."""
    at = tables.snapshot(run.warehouse, CONSENTS)
    said = tables.read(run.warehouse, CONSENTS, at)
    rows = declared(interactions, said, consent.purpose, consent.basis)
    commit = tables.append_log(run.warehouse, CONSENTS, rows, run.author)
    run.count(consents_declared=commit.inserted)
    run.commit(commit)
    log.info(
        "%s: %s shoppers who had said nothing of %s are taken to consent to it: %s",
        run.author.job,
        f"{commit.inserted:,}",
        consent.purpose,
        consent.basis,
    )


def conformed_rows(
    sourced: Sourced, columns: Mapping[str, ColumnMap], table: Table, rules: Mapping[str, str]
) -> DataFrame:
    """A source's rows as `conform` leaves them.

    Raises ContractError with every difference between the source and what the mapping expects, before any work.
    """
    faults = differences(sourced.rows, columns, table)
    if faults:
        lines = [
            f"{table.name}: the source is not what the settings say; nothing was read",
            *(f"  {f}" for f in faults),
        ]
        raise ContractError("\n".join(lines))
    malformed = MALFORMED if MALFORMED in sourced.rows.columns else None
    return conform(sourced.rows, columns, table, rules, malformed)


def set_aside(run: Run, conformed: DataFrame, table: Table, max_share: float) -> None:
    """Publish the rows that cannot be used to `quarantine`, count them by reason, and stop the run if they are many.

    They are kept there also when the run stops for them. Raises ContractError.
    """
    counts = counts_of(conformed)
    run.count(**counts)
    passing = conformed.where(F.size("_reasons") == 0)
    # What fails later, when texts are made of it, is mended when that succeeds.
    own = ~F.col("reason").isin(list(LATER_REASONS))
    if not counts["quarantined"]:
        quarantine(run, table, quarantined(conformed, table).limit(0), passing, own)
        return
    by_reason = conformed.select(F.explode("_reasons").alias("reason")).groupBy("reason").count().orderBy("reason")
    reasons = {row["reason"]: int(row["count"]) for row in by_reason.collect()}
    run.count(**{f"quarantined_{reason}": number for reason, number in reasons.items()})
    quarantine(run, table, quarantined(conformed, table), passing, own)
    if counts["quarantined"] > max_share * counts["read"]:
        listed = ", ".join(f"{reason} {number:,}" for reason, number in reasons.items())
        raise ContractError(
            f"{table.name}: expected at most {max_share:.2%} of the rows to be unusable, found "
            f"{counts['quarantined']:,} of {counts['read']:,} ({listed}); they are in the table quarantine; "
            "mend the source or raise max_quarantined_share"
        )


def counts_of(conformed: DataFrame) -> dict[str, int]:
    """How many rows were read, cannot be used, are twins of others, and had their text mended."""
    counts = conformed.agg(
        F.count("*").alias("read"),
        F.count_if(F.size("_reasons") > 0).alias("quarantined"),
        F.count_if(F.col("_is_twin") & (F.size("_reasons") == 0)).alias("folded"),
        F.count_if(F.size("_cleaned") > 0).alias("cleaned"),
    ).collect()[0]
    return {name: int(counts[name]) for name in ("read", "quarantined", "folded", "cleaned")}


def quarantine(run: Run, table: Table, failing: DataFrame, passing: DataFrame, own: Column) -> None:
    """Add rows that cannot be used to `quarantine`, and mark those there as resolved whose key passes now.

    `failing`: as `quarantine_rows` makes them. `passing`: rows of the table that can be used. `own`: a condition on the
    reasons that the caller finds; rows with others are left alone.
    """
    for left in reversed(range(_QUARANTINE_TRIES)):
        try:
            _quarantine(run, table, failing, passing, own)
            return
        except NewerPublished:  # another import set rows of its own aside; nobody holds a lease on this table
            if not left:
                raise


def _quarantine(run: Run, table: Table, failing: DataFrame, passing: DataFrame, own: Column) -> None:
    there = tables.read(run.warehouse, QUARANTINE, tables.snapshot(run.warehouse, QUARANTINE))
    there = there.where((F.col("table_name") == table.name) & own).drop("changed_by")
    mended = healed(there, passing.select(source_key(table)).distinct(), failing)
    mended = tables.kept(mended.withColumn("resolved_at", F.lit(run.started_at)))
    rows = mended
    try:
        rows = tables.kept(reopened(failing, there).unionByName(mended))
        if not rows.isEmpty():
            if count := mended.count():
                run.count(resolved=count)
            change = tables.compare(run.warehouse, QUARANTINE, rows, run.author, deletes=False)
            run.commit(tables.publish(run.warehouse, change, run.author))
    finally:
        mended.unpersist()
        rows.unpersist()


def import_log(run: Run, conformed: DataFrame, table: Table, settings: ImportSettings) -> DataFrame:
    """Set aside what cannot be used, append to a log what it does not have, and count both. The rows that can be used.

    `conformed`: persisted. Raises ContractError when too many rows cannot be used (see `set_aside`).
    """
    set_aside(run, conformed, table, settings.max_quarantined_share)
    rows = usable(conformed)
    commit = tables.append_log(run.warehouse, table, rows, run.author)
    run.count(appended=commit.inserted)
    run.commit(commit)
    return rows


def plan_log(run: Run, conformed: DataFrame, table: Table) -> dict[str, int | None]:
    """What `import_log` would count, but for `cleaned` rows and the reasons of those it would set aside."""
    at = tables.snapshot(run.warehouse, table)
    there = tables.read(run.warehouse, table, at).select(*table.key)
    news = usable(conformed).join(there, on=list(table.key), how="left_anti")
    counts = counts_of(conformed)
    return {**{name: counts[name] for name in ("read", "quarantined", "folded")}, "appended": news.count()}


def import_state(
    run: Run,
    settings: ImportSettings,
    table: Table,
    rules: Mapping[str, str],
    *,
    finished: Callable[[DataFrame], DataFrame] = lambda rows: rows,
    given: Mapping[str, str] | None = None,
    scope: Column | None = None,
) -> None:
    """Import the run's source into a state table, within `scope`.

    `finished` adds to usable rows the columns that no source has; `given` are constants that other keys name. A key
    that the source has, but not in a usable row, keeps the row that is published: it is not gone. Raises
    ContractError when the source differs from the mapping, when too many rows cannot be used or too few can, and
    when more than `max_deleted_share` would be removed.
    """
    if settings.mode == "append":
        raise ConfigError(f"{run.author.job}.mode: {table.name} takes snapshot or upsert; append is for logs")
    if twice := sorted(set(given or {}) & set(settings.columns)):
        raise ConfigError(f"{run.author.job}.columns: {', '.join(twice)}: has a key of its own in the section")
    constants = {name: ColumnMap.model_validate({"constant": value}) for name, value in (given or {}).items()}
    conformed = tables.kept(conformed_rows(run.sourced, {**settings.columns, **constants}, table, rules))
    try:
        set_aside(run, conformed, table, settings.max_quarantined_share)
        unusable = conformed.where(F.size("_reasons") > 0).select(*table.key).distinct()
        is_snapshot = settings.mode == "snapshot"
        rows = finished(usable(conformed))
        change = tables.compare(run.warehouse, table, rows, run.author, scope=scope, keep=unusable, deletes=is_snapshot)
        publish_guarded(run, change, settings)
    finally:
        conformed.unpersist()


def publish_guarded(run: Run, change: tables.Change, settings: ImportSettings) -> None:
    """Publish an import's change unless it would empty the shop. Raises ContractError."""
    try:
        _guard(change, settings)
    except ContractError:
        tables.drop(change)
        raise
    run.count(inserted=change.inserted, updated=change.updated, deleted=change.deleted)
    run.commit(tables.publish(run.warehouse, change, run.author))


def _guard(change: tables.Change, settings: ImportSettings) -> None:
    table = change.table
    if change.given < settings.min_rows:
        raise ContractError(
            f"{table.name}: expected at least {settings.min_rows:,} usable rows, found {change.given:,}; "
            "nothing was published; is the source whole? min_rows is the bound"
        )
    if change.deleted > settings.max_deleted_share * change.before:
        raise ContractError(
            f"{table.name}: expected at most {settings.max_deleted_share:.0%} of {change.before:,} rows to go, found "
            f"{change.deleted:,} missing from the source; nothing was published; is the source whole? "
            "max_deleted_share is the bound"
        )
