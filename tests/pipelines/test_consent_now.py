"""A run that goes on with versions of days ago asks consent as it is now, too."""

from pathlib import Path
from typing import Any

import pytest
from behaviour import PURPOSE, Behaviour

from ecomspark import tables
from ecomspark.behaviour import allowed_now
from ecomspark.pipelines import withdraw_consents
from ecomspark.runs import planned_run
from ecomspark.schemas import CONSENTS, NEXT_ITEMS, SHOPPER_LINKS
from ecomspark.tables import Author


def test_who_has_said_no_since_a_run_was_cut_off_is_not_brought_back(spark: Any, tmp_path: Path) -> None:
    shop = Behaviour(spark, tmp_path, items={"a": True})
    shop.consents = [("ann", 0, True), ("bob", 0, True), ("cyd", 0, True)]
    shop.publish()

    def allowed(current: Any) -> list[str]:
        return sorted(row["shopper_id"] for row in allowed_now(current, PURPOSE).collect())

    reads = (CONSENTS, SHOPPER_LINKS)
    with planned_run(shop.warehouse, "job", reads=reads, publishes=(), covers={}, as_of=None) as current:
        assert allowed(current) == ["ann", "bob", "cyd"]
        shop.consents += [("ann", 1, False), ("dot", 1, True)]
        shop.links = [("eve", "bob")]
        shop.publish()
        assert allowed(current) == ["cyd"], "ann said no, bob is eve, who said nothing; dot's yes came after the pins"
    with planned_run(shop.warehouse, "job", reads=reads, publishes=(), covers={}, as_of=None) as current:
        assert allowed(current) == ["cyd", "dot"]


@pytest.mark.parametrize("in_a_catalog", [False, True])
def test_what_a_dead_run_left_of_everybodys_lists_goes_with_the_next_withdrawal(
    spark: Any, tmp_path: Path, in_a_catalog: bool
) -> None:
    shop = Behaviour(spark, tmp_path, items={"a": True})
    shop.consents = [("ann", 0, True)]
    shop.publish()
    warehouse = shop.warehouse
    if in_a_catalog:
        spark.sql("CREATE SCHEMA IF NOT EXISTS left_over")
        warehouse = tables.Warehouse(spark, "catalog:spark_catalog.left_over", 2)
    none = tables.empty(warehouse, NEXT_ITEMS).drop("changed_by")
    tables.stage(warehouse, NEXT_ITEMS, none, Author("score_next_items", "died"))

    def left() -> int:
        if in_a_catalog:
            return len(spark.sql("SHOW TABLES IN left_over LIKE 'staging_*'").collect())
        return len(list((tmp_path / "warehouse" / "staging").glob("next_items/*")))

    assert left() == 1
    if in_a_catalog:
        tables.unstage_all(warehouse, NEXT_ITEMS)
        spark.sql("DROP SCHEMA left_over CASCADE")
        assert spark.sql("SHOW SCHEMAS LIKE 'left_over'").isEmpty()
        return
    withdraw_consents.run(spark, withdraw_consents.Config(warehouse=warehouse.location, buckets=2), "1")
    assert left() == 0
