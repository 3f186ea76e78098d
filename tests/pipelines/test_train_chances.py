"""Chances trained end to end: from earlier days to a sealed set, the same the second time."""

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from behaviour import Behaviour, day
from pydantic import ValidationError

from ecomspark.chances import open_chances
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.pipelines import train_chances
from ecomspark.pipelines.train_chances import Config

DAYS, CUTS = 5, 4
AS_OF = day(30)


def config(shop: Behaviour, **changes: Any) -> Config:
    asked = {"warehouse": shop.warehouse.location, "buckets": 2, "models_folder": shop.folder / "models", "name": "chances",
             "days": DAYS, "cuts": CUTS, **changes}  # fmt: skip
    return Config(**asked)


@pytest.fixture(scope="module")
def shop(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Behaviour:
    """Forty shoppers: some buy every three days, some look; one in four never said yes, and nobody returns anything."""
    made, draw = Behaviour(spark, tmp_path_factory.mktemp("chances")), random.Random(5)
    made.items = {"a1": True}
    for n in range(40):
        who, is_buyer = f"s{n:02}", n % 3 == 0
        made.consents.append((who, 0, n % 4 != 3))
        for visit in range(0, 34, 3):
            done = [("click", f"i{draw.randrange(9)}") for _ in range(draw.randrange(1, 4))]
            if is_buyer and draw.random() < 0.7:
                done += [("cart", "a1"), ("purchase", "a1")]
            elif draw.random() < 0.1:
                done += [("purchase", "a1")]
            made.sessions.append((who, visit + draw.random(), done, None))
    made.publish()
    return made


def test_a_set_is_made_of_what_was_known_then_and_is_the_same_the_second_time(shop: Behaviour) -> None:
    asked = config(shop, kinds=["session_purchase", "purchase"])
    planned = train_chances.plan(shop.spark, asked, AS_OF)
    summary = train_chances.run(shop.spark, asked, "1", AS_OF)
    assert summary.status == "published"
    assert planned.counts["sets_to_make"] == summary.rows["checkpoints"] == 1
    for name in ("purchase_examples", "purchase_with", "session_purchase_examples", "session_purchase_with"):
        assert planned.counts[name] == summary.rows[name], name
    allowed = [n for n in range(40) if n % 4 != 3]
    assert summary.rows["purchase_examples"] == CUTS * len(allowed), "every shopper who allows it, at each cut"
    events = [
        (who, begins, len(done)) for who, begins, done, _ in shop.sessions if int(who[1:]) in allowed and begins < 31
    ]
    assert summary.rows["session_purchase_examples"] == sum(count for _, _, count in events)
    # By hand: who bought in the days behind each cut, the end of a day.
    bought = 0
    for back in range(1, CUTS + 1):
        cut = 31 - DAYS * back
        for n in allowed:
            mine = [s for s in shop.sessions if s[0] == f"s{n:02}"]
            bought += any(
                kind == "purchase" and cut <= begins + place / 1440 < cut + DAYS
                for _, begins, done, _ in mine for place, (kind, _) in enumerate(done)
            )  # fmt: skip
    assert summary.rows["purchase_with"] == bought

    made = open_chances(shop.folder / "models", "chances")
    assert set(made.models) == {"session_purchase", "purchase"}
    assert made.days == DAYS
    assert made.data["interactions"]["version"] >= 0
    assert made.models["purchase"].metrics["auc"] > 0.7, "buyers buy again"
    assert made.models["purchase"].metrics["brier"] < made.models["purchase"].metrics["brier_of_rate"]
    assert 2 * CUTS * len(allowed) > made.models["purchase"].metrics["train_rows"] > 0

    assert train_chances.run(shop.spark, asked, "1", AS_OF).status == "replayed"
    assert train_chances.run(shop.spark, asked, "2", AS_OF).status == "nothing_to_do", "the set is there"
    with pytest.raises(CheckpointError, match=r"set train_chances.name to another name"):
        train_chances.run(shop.spark, config(shop, kinds=["purchase"]), "3", AS_OF)
    with pytest.raises(ContractError, match=r"return: expected training examples with and without one, found \d+ of 0"):
        train_chances.run(shop.spark, config(shop, name="other", kinds=["return"]), "4", AS_OF)
    assert not (shop.folder / "models" / "other").exists()
    empty = config(shop, name="other", warehouse=str(shop.folder / "nothing"))
    with pytest.raises(ContractError, match="consents: expected the table, found none"):
        train_chances.run(shop.spark, empty, "1", AS_OF)


def test_the_later_rows_are_those_of_the_latest_cuts() -> None:
    at = [pd.Timestamp("2026-03-01") + timedelta(days=n // 2) for n in range(10)]
    rows = pd.DataFrame({"at": at, "group": [str(n) for n in range(10)]})
    is_later = train_chances.is_later(rows, 0.3, by_group=False)
    assert rows[is_later]["at"].min() == pd.Timestamp("2026-03-05"), "of five cuts the last, at 30 %: 1.5, rounded down"
    assert train_chances.is_later(rows.iloc[:0], 0.3, by_group=True).tolist() == []
    one = train_chances.is_later(rows[rows["at"] == at[0]], 0.3, by_group=False)
    assert one.all(), "of one cut nothing is left to train on, and the fit says so"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"days": 0}, "greater than or equal to 1"), ({"cuts": 1}, "greater than or equal to 2"), ({"kinds": []}, "at least 1 item"),
     ({"kinds": ["click"]}, "Input should be"), ({"validation_share": 1}, "less than 1"), ({"time_zone": "Nowhere"}, "no time zone of that name"),
     ({"name": "a/b"}, "should match pattern"), ({"max_examples": 5}, "greater than or equal to 100")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config(**{"warehouse": "w", "models_folder": Path("m"), "name": "chances", **changes})
