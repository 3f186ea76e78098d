"""Who the shopper is, imported: pseudonyms, consents and links, end to end, and nothing of an id or a key left behind."""

import hashlib
import hmac
import importlib
import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from ecomspark import tables
from ecomspark.errors import ContractError
from ecomspark.features.conform import ColumnMap, conform, usable
from ecomspark.features.online_retail import COLUMNS, LINES, RULES, SHOPPER, interactions_of, numbered
from ecomspark.plans import Plan
from ecomspark.pseudonyms import Shoppers, pseudonymised
from ecomspark.runs import Summary
from ecomspark.schemas import CONSENTS, INTERACTIONS, QUARANTINE, SHOPPER_LINKS, Table
from ecomspark.tables import Warehouse

AS_OF = date(2011, 11, 1)
CANARY, KEY = "canary-shopper-2718", b"canary-key-1618-canary-key-1618-"

LOG = f"""id,user,sku,what,ts
1,{CANARY},i01,click,2011-10-01 09:00:00
2, {CANARY} ,i02,purchase,2011-10-01 09:05:00
3, ,i01,click,2011-10-02 09:00:00
4,anna,i03,click,2012-02-29 09:00:00
5,{CANARY},i01,stare,2011-10-03 09:00:00
6,{CANARY},i01,click,no date
7,{CANARY},i01,click,2011-10-03 09:00:00,and,more
8,{CANARY},i01,click,2011-10-03 09:00:00,and,less
"""
SAID = f"""user,what,said,ts,why
{CANARY},personalisation,no,2011-10-05,
anna,personalisation,yes,2011-10-05,by mail
anna,personalisation,yes,2011-10-05 00:00:00,by phone
anna,statistics,no,2011-10-05,
bo,personalisation,yes,2011-10-06,by mail
bo,personalisation,no,2011-10-06,
cy,personalisation,no,2011-10-06,asked us
cy,personalisation,no,2011-10-06 00:00:00,
dee,personalisation,yes,2035-01-01,
eve,personalisation,no,2035-01-01,
finn,personalisation,no,1900-01-01,
,personalisation,yes,2011-10-05,
{CANARY},personalisation,maybe,2011-10-05,
gus,all things,yes,2011-10-05,
"""
LINKED = f"""stays,goes,ts
hal,{CANARY},2011-10-07
hal,{CANARY},2011-10-07 00:00:00
anna,anna,2011-10-07
anna,,2011-10-07
anna,bo,2035-01-01
anna,cy,soon
"""
LATER = "id,user,sku,what,ts\n21,cy,i01,click,2011-10-20 09:00:00\n22,hal,i01,click,2011-10-21 09:00:00\n"


def named(text: str) -> str:
    return f"k1-{hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()[:32]}"


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2011, 10, day, hour, tzinfo=UTC)


@dataclass
class Desk:
    """A warehouse with its sources beside it, and what was logged while they were imported."""

    spark: Any
    folder: Path
    said: list[str]

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.spark, str(self.folder / "warehouse"), 2)

    def config(self, job: str, source: str, columns: dict[str, Any], **more: Any) -> Any:
        return importlib.import_module(f"ecomspark.pipelines.{job}").Config(
            **{
                "warehouse": self.warehouse.location,
                "source": {"format": "csv", "path": str(self.folder / source)},
                "columns": columns,
                "shoppers": {"key_file": self.folder / "key", "key_id": "k1"},
                "max_quarantined_share": 1.0,
                **more,
            }
        )

    def interactions(self, source: str = "log.csv", **more: Any) -> Any:
        columns = {"interaction_id": "id", "shopper_id": "user", "item_id": "sku", "kind": "what", "occurred_at": "ts",
                   "basket_id": {"from": ["user", "ts"]}}  # fmt: skip
        consent = {"purpose": "personalisation", "basis": "terms of 2010"}
        return self.config("import_interactions", source, columns, **{"consent": consent, **more})

    def consents(self) -> Any:
        columns = {"shopper_id": "user", "purpose": "what", "at": "ts", "basis": "why",
                   "is_given": {"from": "said", "values": {"yes": True, "no": False}}}  # fmt: skip
        return self.config("import_consents", "said.csv", columns)

    def links(self) -> Any:
        return self.config(
            "import_shopper_links", "linked.csv", {"shopper_id": "stays", "other_id": "goes", "at": "ts"}
        )

    def run(self, job: str, config: Any, run_id: str) -> Summary:
        summary: Summary = importlib.import_module(f"ecomspark.pipelines.{job}").run(self.spark, config, run_id, AS_OF)
        return summary

    def plan(self, job: str, config: Any) -> Plan:
        plan: Plan = importlib.import_module(f"ecomspark.pipelines.{job}").plan(self.spark, config, AS_OF)
        return plan

    def rows(self, table: Table) -> list[Any]:
        rows: list[Any] = tables.read(self.warehouse, table, tables.snapshot(self.warehouse, table)).collect()
        return rows


@dataclass
class Imported:
    """The desk after all of its imports: summaries by run, plans by job."""

    desk: Desk
    runs: dict[str, Summary]
    plans: dict[str, Plan]


@pytest.fixture(scope="module")
def imported(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """Interactions with a declared consent, what shoppers said, who is who, and more interactions."""
    folder, said = tmp_path_factory.mktemp("desk"), []
    for name, text in (("log.csv", LOG), ("said.csv", SAID), ("linked.csv", LINKED), ("later.csv", LATER)):
        (folder / name).write_text(text)
    (folder / "key").write_bytes(KEY)

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log, keep = logging.getLogger("ecomspark"), Keep()
    level = log.level
    log.addHandler(keep)
    log.setLevel(logging.INFO)
    desk = Desk(spark, folder, said)
    try:
        runs = {"1": desk.run("import_interactions", desk.interactions(), "1")}
        plans = {"import_consents": desk.plan("import_consents", desk.consents())}
        runs["consents"] = desk.run("import_consents", desk.consents(), "1")
        plans["import_shopper_links"] = desk.plan("import_shopper_links", desk.links())
        runs["links"] = desk.run("import_shopper_links", desk.links(), "1")
        runs["later"] = desk.run("import_interactions", desk.interactions("later.csv"), "2")
        with pytest.raises(ContractError, match=r"expected at most 0\.00%"):
            desk.run("import_interactions", desk.interactions(max_quarantined_share=0.0), "3")
    finally:
        log.removeHandler(keep)
        log.setLevel(level)
    return Imported(desk, runs, plans)


def test_interactions_know_their_shoppers_by_pseudonyms_alone(imported: Imported) -> None:  # S9
    found = {row["interaction_id"]: (row["shopper_id"], row["basket_id"]) for row in imported.desk.rows(INTERACTIONS)}
    assert found == {
        "1": (named(CANARY), f"{named(CANARY)}-2011-10-01 09:00:00"),
        "2": (named(CANARY), f"{named(CANARY)}-2011-10-01 09:05:00"),
        "3": (None, None),
        "4": (named("anna"), f"{named('anna')}-2012-02-29 09:00:00"),
        "21": (named("cy"), f"{named('cy')}-2011-10-20 09:00:00"),
        "22": (named("hal"), f"{named('hal')}-2011-10-21 09:00:00"),
    }


def test_a_declared_consent_is_of_those_who_never_said_anything(imported: Imported) -> None:  # S10
    declared = {(row["shopper_id"], row["at"].astimezone(UTC)) for row in imported.desk.rows(CONSENTS)
                if row["basis"] == "terms of 2010" and row["is_given"]}  # fmt: skip
    ever = datetime(1970, 1, 1, tzinfo=UTC)  # before whatever a shopper may have said
    assert declared == {(named(CANARY), ever), (named("anna"), ever), (named("hal"), ever)}, "cy had said no"
    assert [imported.runs[run].rows["consents_declared"] for run in ("1", "later")] == [2, 1]
    sentence = "import_interactions: 2 shoppers who had said nothing of personalisation are taken to consent to it: "
    assert sentence + "terms of 2010" in imported.desk.said


def test_what_shoppers_said_lands_once_and_a_no_beside_a_yes(imported: Imported) -> None:  # S10
    found = {
        (row["shopper_id"], row["purpose"], row["at"].astimezone(UTC).day, row["is_given"], row["basis"])
        for row in imported.desk.rows(CONSENTS) if row["basis"] != "terms of 2010"
    }  # fmt: skip
    assert found == {
        (named(CANARY), "personalisation", 5, False, None),
        (named("anna"), "personalisation", 5, True, "by mail"),
        (named("anna"), "statistics", 5, False, None),
        (named("bo"), "personalisation", 6, True, "by mail"),
        (named("bo"), "personalisation", 6, False, None),
        (named("cy"), "personalisation", 6, False, "asked us"),
        (named("eve"), "personalisation", 1, False, None),
    }
    rows = imported.runs["consents"].rows
    assert {name: count for name, count in rows.items() if name.startswith("quarantined_")} == {
        "quarantined_at_out_of_range": 2, "quarantined_is_given_unusable": 1, "quarantined_purpose_unusable": 1,
        "quarantined_shopper_id_missing": 1,
    }  # fmt: skip
    assert (rows["read"], rows["quarantined"], rows["folded"], rows["appended"]) == (14, 5, 2, 7)


def test_links_land_but_not_to_oneself_or_at_no_time(imported: Imported) -> None:
    found = [
        (row["shopper_id"], row["other_id"], row["at"].astimezone(UTC)) for row in imported.desk.rows(SHOPPER_LINKS)
    ]
    assert found == [(named("hal"), named(CANARY), at(7))]
    rows = imported.runs["links"].rows
    assert {name: count for name, count in rows.items() if name.startswith("quarantined_")} == {
        "quarantined_at_out_of_range": 1, "quarantined_at_unusable": 1, "quarantined_other_id_missing": 1,
        "quarantined_self_link": 1,
    }  # fmt: skip


def test_a_plan_counts_what_the_run_then_does(imported: Imported) -> None:
    for job, run in (("import_consents", "consents"), ("import_shopper_links", "links")):
        plan, rows = imported.plans[job], imported.runs[run].rows
        assert plan.counts == {name: rows[name] for name in ("read", "quarantined", "folded", "appended")}
        assert "source" in plan.inputs


def test_what_was_imported_once_is_not_imported_again(imported: Imported) -> None:
    desk = imported.desk
    again = desk.run("import_interactions", desk.interactions(), "again")
    assert again.rows["appended"] == again.rows["consents_declared"] == 0
    assert again.tables["interactions"]["before"] == again.tables["interactions"]["after"]
    assert desk.plan("import_consents", desk.consents()).counts["appended"] == 0


def test_an_id_and_a_key_are_nowhere_after_bad_rows_and_an_error(imported: Imported, tmp_path: Path) -> None:  # S8, S9
    desk = imported.desk
    secrets = (CANARY, KEY.decode(), KEY.hex())
    kept = desk.rows(QUARANTINE)
    assert sum(row["reason"] == "malformed" for row in kept) == 2, "two lines are two rows, though neither is kept"
    assert sum(named(CANARY) in row["row"] for row in kept) == 3, "of bad rows there is who it was, under a pseudonym"
    files = [file for file in (desk.folder / "warehouse").rglob("*") if file.is_file()]
    assert any(file.suffix == ".json" for file in files)
    assert not [file for file in files for secret in secrets if secret.encode() in file.read_bytes()]
    for folder in {log.parent for log in (desk.folder / "warehouse").rglob("_delta_log")}:
        # Pages of Parquet are compressed: what a reader sees must be looked at, too.
        text = str(desk.spark.read.format("delta").load(str(folder)).collect())
        assert not [secret for secret in secrets if secret in text], folder.name
    assert desk.said
    assert not [line for line in desk.said for secret in secrets if secret in line]
    # What Spark keeps of each execution is what it writes into an event log.
    store = desk.spark._jsparkSession.sharedState().statusStore()
    listed = store.executionsList()
    plans = [listed.apply(place).physicalPlanDescription() for place in range(listed.size())]
    # A frame that a run keeps stands there as a leaf: what it was made of is asked for here.
    (tmp_path / "key").write_bytes(KEY)
    shoppers = Shoppers(key_file=tmp_path / "key", key_id="k1")
    mapped = {"shopper_id": ColumnMap.model_validate("who")}
    rows, _ = pseudonymised(desk.spark.range(1).selectExpr("'x' AS who"), mapped, ["shopper_id"], shoppers)
    plans.append(rows._jdf.queryExecution().toString())
    assert "pseudonyms" in plans[-1]
    assert not [plan for plan in plans for secret in secrets if secret in plan]


def test_a_line_of_the_online_retail_log_knows_its_shopper_where_there_is_a_key(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    schema = "InvoiceNo string, StockCode string, Description string, Quantity int, InvoiceDate timestamp, UnitPrice double, CustomerID double"
    lines = spark.createDataFrame(
        [("536365", "85123A", "HEART", 6, at(1), 2.5, 17850.0), ("536366", "85123A", "HEART", 1, at(2), 2.5, None)], schema
    )  # fmt: skip
    maps = {ours: ColumnMap.model_validate(theirs) for ours, theirs in COLUMNS.items()}
    without = interactions_of(usable(conform(numbered(lines), maps, LINES, RULES)))
    shoppers = Shoppers(key_file=tmp_path / "key", key_id="k1")
    with_shopper = {"shopper_id": ColumnMap.model_validate(SHOPPER), **maps}
    rows, mapped = pseudonymised(numbered(lines), with_shopper, ["shopper_id"], shoppers)
    found = interactions_of(usable(conform(rows, mapped, LINES, RULES))).orderBy("interaction_id").collect()
    assert [row["shopper_id"] for row in found] == [named("17850"), None]
    assert {row["shopper_id"] for row in without.collect()} == {None}
    assert set(without.columns) == set(INTERACTIONS.column_names)
