"""Whether a run may start, by what earlier ones left in `runs`: rows of plain Python, no Spark."""

from datetime import date
from typing import Any

import pytest
from pyspark.sql import Row

from ecomspark.errors import NewerPublished
from ecomspark.ledger import Past, refuse_older
from ecomspark.tables import Author, Snapshot

ME = Author("rank_candidates", "late")
MONDAY, TUESDAY = date(2026, 11, 2), date(2026, 11, 3)


def ran(day: date, version: int, epoch: int = 1) -> Any:
    return Row(as_of=day, epoch=epoch, inputs={"items": Row(table_id="t", version=version)})


@pytest.mark.parametrize("kind", ["over", "begun"])
def test_a_run_of_an_older_day_is_refused_also_when_the_newer_one_published_a_part_only(kind: str) -> None:
    past = Past(**{kind: (ran(TUESDAY, 5),)})
    with pytest.raises(NewerPublished, match="asked for 2026-11-02, but 2026-11-03 is published already"):
        refuse_older(ME, MONDAY, {}, None, past)
    refuse_older(ME, TUESDAY, {}, None, past)


def test_a_run_of_older_versions_or_one_that_was_overtaken_is_refused() -> None:
    past = Past(over=(ran(MONDAY, 5, epoch=7),))
    with pytest.raises(NewerPublished, match="asked for items at version 4, but version 5 is published already"):
        refuse_older(ME, MONDAY, {"items": Snapshot("t", 4)}, None, past)
    with pytest.raises(NewerPublished, match="was cut off, and a later run has ended since"):
        refuse_older(ME, MONDAY, {"items": Snapshot("t", 5)}, ran(MONDAY, 5, epoch=6), past)
    refuse_older(ME, MONDAY, {"items": Snapshot("another table", 4)}, ran(MONDAY, 5, epoch=8), past)
