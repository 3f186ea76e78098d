"""Put a variant's rankings back to what a run published, and stop it from being published until it is released."""

import argparse
import json
from datetime import UTC, datetime

from pyspark.sql import Column, Row
from pyspark.sql import functions as F

from ecomspark import config, launch, ledger, tables
from ecomspark.config import LeaseSettings, Settings
from ecomspark.errors import ConfigError, ContractError
from ecomspark.features.ranking import closed_up
from ecomspark.runs import Summary, open_run
from ecomspark.schemas import HOLDS, ITEMS, KEPT_BACK, QUERIES, RANKINGS, RUNS
from ecomspark.tables import Author, Commit, Snapshot, Warehouse
from ecomspark.text import settings_digest

JOB = "rank_candidates"  # a rollback is a run of the job whose place it takes: the next one goes on from it
_ROLLBACK = "rollback"


def show(command: str, asked: argparse.Namespace) -> int:
    """Do what `ecomspark rollback`, `hold` or `release` asks for, and print what came of it; the exit status."""
    launch.log_to_stderr(asked.log_format)
    with launch.ending_well() as ended:
        settings = config.load(asked.conf, "", Settings, launch.jobs(), asked.overrides)
        if not config.is_name(asked.run_id) or not config.is_name(asked.variant):
            raise ConfigError("--run-id, --variant: expected letters, digits and _ . = - only, 128 at most")
        with launch.spark_session(command, settings) as spark:
            warehouse = Warehouse(spark, settings.warehouse, settings.buckets)
            author = Author(command, asked.run_id)
            if command == "rollback":
                said = roll_back(warehouse, asked.to, asked.variant, asked.run_id, settings.leases).as_json()
            else:
                if command == "hold":
                    commit = set_hold(warehouse, asked.variant, asked.reason, author)
                else:
                    commit = release(warehouse, asked.variant, author)
                versions = {HOLDS.name: {"before": commit.before, "after": commit.after}}
                said = {"job": command, "run_id": asked.run_id, "variant": asked.variant, "tables": versions}
        print(json.dumps(said), flush=True)
    return ended.status


def roll_back(warehouse: Warehouse, to: str, variant: str, run_id: str, leases: LeaseSettings) -> Summary:
    """Publish the rows of a variant that differ from what the run `to` left, as a new version, and set a hold.

    Items and queries that are gone since stay out, and ranks close up. The run's watermarks are taken over: the first
    run after the release looks at every query. Raises ContractError when `to` did not cover the variant,
    or its version of `rankings` can no longer be read; LeaseTaken when another run publishes.
    """
    former = _published(warehouse, to, variant)
    covers = {variant: _ROLLBACK}  # never what a policy's digest is: the next run looks at every query
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=(ITEMS, QUERIES, RANKINGS),
        publishes=(RANKINGS, KEPT_BACK),
        covers=covers,
        is_ordered=False,
        is_pinned=True,
        settings_digest=settings_digest({"rollback": to, "variant": variant}),
        as_of=former["as_of"],
        leases=leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("rollback"):
                then = _version(former, current.inputs[RANKINGS.name])
                old = tables.read(warehouse, RANKINGS, then).where(F.col("variant") == variant)
                there = old.join(current.read(ITEMS).select("item_id"), on="item_id", how="left_semi")
                there = there.join(current.read(QUERIES).select("query_id"), on="query_id", how="left_semi")
                in_scope = F.col("variant") == variant
                change = tables.compare(warehouse, RANKINGS, closed_up(there), current.author, scope=in_scope)
                current.count(ranked=change.given, new=change.inserted, changed=change.updated, removed=change.deleted)
                # First the hold: a night's run between the two would undo what is to come. And none if that cannot be.
                _put(warehouse, variant, _ROLLBACK, current.author)
                current.commit(tables.publish(warehouse, change, current.author))
            current.inputs = dict(ledger.pinned(former))
    return current.summary()


def set_hold(warehouse: Warehouse, variant: str, reason: str, author: Author) -> Commit:
    """Stop publishing of a variant, for runs that start from now on. One that is on hold stays as it is: of a
    rollback's, maintenance keeps what it went back to."""
    at = tables.snapshot(warehouse, HOLDS)
    if at is not None and not tables.read(warehouse, HOLDS, at).where(_of(variant)).isEmpty():
        return Commit(HOLDS, at.version, at.version)
    return _put(warehouse, variant, reason, author)


def _put(warehouse: Warehouse, variant: str, reason: str, author: Author) -> Commit:
    """Set a hold, or put another in the place of the one that is there."""
    values = (RANKINGS.name, variant, reason, author.run_id, datetime.now(UTC))
    rows = warehouse.spark.createDataFrame([values], tables.ddl(HOLDS))
    change = tables.compare(warehouse, HOLDS, rows, author, scope=_of(variant))
    return tables.publish(warehouse, change, author)


def release(warehouse: Warehouse, variant: str, author: Author) -> Commit:
    """Let a variant be published again. Raises ContractError when there is no hold on it."""
    change = tables.compare(warehouse, HOLDS, tables.empty(warehouse, HOLDS), author, scope=_of(variant))
    if change.is_empty:
        tables.drop(change)
        raise ContractError(f"holds: expected a hold on the variant {variant}, found none; nothing was released")
    return tables.publish(warehouse, change, author)


def _of(variant: str) -> Column:
    return (F.col("table_name") == RANKINGS.name) & (F.col("variant") == variant)


def _published(warehouse: Warehouse, to: str, variant: str) -> Row:
    """The row of a run that is over and covered the variant."""
    at = tables.snapshot(warehouse, RUNS)
    of_job = F.col("status").isin(list(ledger.OVER)) & (F.col("job") == JOB) & (F.col("run_id") == to)
    found = tables.read(warehouse, RUNS, at).where(of_job).collect()
    if not found or variant not in (found[0]["covers"] or {}):
        raise ContractError(
            f"runs: expected a run {to} of {JOB} that published the variant {variant}, found "
            f"{'one that did not' if found else 'none'}; the table runs has them all, with what each covers"
        )
    return found[0]


def _version(former: Row, now: Snapshot | None) -> Snapshot:
    """What the run left of `rankings`: the version it published, or the one it found when nothing differed."""
    read = ledger.pinned(former)[RANKINGS.name]
    published = former["published"].get(RANKINGS.name)
    if now is None or now.table_id != read.table_id:
        raise ContractError(f"rankings: expected the table that run {former['run_id']} published to, found another")
    return Snapshot(read.table_id, published["after"] if published else read.version)
