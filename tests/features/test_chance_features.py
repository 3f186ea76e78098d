"""The features of chances: by hand, and the same in Spark and in the pandas that the figures are made with."""

import sys
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from ecomspark.chances import SESSION_FEATURES, SHOPPER_FEATURES, Linear
from ecomspark.features.chances import (
    at_cuts,
    follows,
    goes_on,
    last_of_shopper,
    logit,
    session_features,
    shopper_features,
)
from ecomspark.features.ranking import expected_gain

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
SCHEMA = (
    "shopper_id string, session_id string, session_started_at timestamp, occurred_at timestamp, interaction_id string, "
    "kind string, item_id string, basket_id string"
)
# shopper, session, days before the cut, kind, item, basket
DONE = [
    ("ann", "s1", 100.0, "purchase", "a", "b1"), ("ann", "s1", 100.0, "purchase", "b", "b1"),
    ("ann", "s2", 20.0, "click", "a", None), ("ann", "s2", 19.999, "cart", "a", None),
    ("ann", "s2", 19.99, "click", "c", None), ("ann", "s2", 19.98, "purchase", "a", None),
    ("ann", "s2", 19.97, "click", "a", None), ("ann", "s3", 10.0, "return", "a", None),
    ("ann", "s4", -1.0, "purchase", "d", "b9"), ("ann", "s4", -29.9, "return", "d", None),
    ("bob", "s5", 3.0, "favourite", "a", None), ("bob", "s6", -30.0, "purchase", "a", "b8"),
    ("cyd", "s7", 0.0, "return", "a", None), ("dan", "s8", 7.0, "return", "b", None),
    ("eli", "s9", 4.0, "purchase", "a", "b2"),
]  # fmt: skip
CUT = datetime(2026, 3, 2, tzinfo=UTC)


def test_spark_and_pandas_mean_the_same_by_every_feature(spark: Any) -> None:
    import chances

    times = [CUT - timedelta(days=done[2]) for done in DONE]
    began = {done[1]: min(t for t, other in zip(times, DONE, strict=True) if other[1] == done[1]) for done in DONE}
    events = spark.createDataFrame(
        [(who, s, began[s], at, f"i{n:02}", kind, item, basket)
         for n, ((who, s, _, kind, item, basket), at) in enumerate(zip(DONE, times, strict=True))],
        SCHEMA,
    )  # fmt: skip
    plain = pd.DataFrame(DONE, columns=["shopper_id", "session_id", "days", "kind", "item_id", "basket_id"])
    plain["occurred_at"] = [t.replace(tzinfo=None) for t in times]
    plain["seconds_at"] = [t.timestamp() for t in times]
    plain["interaction_id"] = [f"i{n:02}" for n in range(len(plain))]

    features = session_features(events)
    mine = features.join(goes_on(events), on=["session_id", "interaction_id"], how="inner").toPandas()
    mine = mine.sort_values("interaction_id", ignore_index=True)
    theirs = chances.session_features(plain).sort_values("interaction_id", ignore_index=True)
    for name in SESSION_FEATURES:
        assert mine[name].tolist() == pytest.approx(theirs[name].tolist(), abs=1e-6), name
    assert mine["label"].tolist() == theirs["label"].tolist()
    # By hand: s2 after its third event, with a purchase to come; and after its fourth, with none.
    third = mine.set_index("interaction_id").loc["i04"]
    assert np.expm1([third["events"], third["items"], third["carts_open"], third["item_events"]]) == pytest.approx(
        [3, 2, 1, 1]
    )
    assert [third["is_cart"], third["label"], mine.set_index("interaction_id").loc["i05", "label"]] == [0, 1, 0]
    assert {row["interaction_id"] for row in last_of_shopper(features).collect()} == {"i09", "i11", "i12", "i13", "i14"}

    at_cut = at_cuts(events, [date(2026, 3, 1)], "UTC").persist()
    found = shopper_features(at_cut).toPandas().set_index("shopper_id").sort_index()
    wanted = chances.shopper_features(plain, pd.Timestamp(CUT.replace(tzinfo=None))).sort_index()
    assert found.index.tolist() == wanted.index.tolist() == ["ann", "bob", "dan", "eli"], (
        "cyd was not seen before the cut"
    )
    for name in SHOPPER_FEATURES:
        assert found[name].tolist() == pytest.approx(wanted[name].tolist(), abs=1e-9), name
    ann = found.loc["ann"]
    assert np.expm1(ann[["baskets", "lines", "items", "returns"]].tolist()) == pytest.approx([2, 3, 2, 1])
    assert ann["overdue"] == pytest.approx(19.98 / 80.02), "days since the last basket by days between baskets"
    assert found.loc["dan", "return_share"] == 1.0, "returns and nothing bought"
    assert found.loc["bob", ["return_share", "overdue"]].tolist() == [0.0, 0.0]
    assert found.loc["eli", ["baskets", "overdue"]].tolist() == [pytest.approx(np.log(2)), 0.0], "of one basket no pace"
    bought, returned = (
        {row["shopper_id"] for row in follows(at_cut, kind, 30).collect()} for kind in ("purchase", "return")
    )
    assert (bought, returned) == ({"ann"}, {"ann", "cyd"}), "bob's comes when the 30 days are over"

    model = Linear(terms={"lines": (0.5, 2.0, 1.5), "overdue": (0.1, 0.2, -0.3)}, bias=-1.0,
                   points=[(-2.0, 0.1), (0.0, 0.2), (1.0, 0.7)], metrics={})  # fmt: skip
    said = shopper_features(at_cut).select(
        "shopper_id", expected_gain(logit(model.terms, model.bias), model.points).alias("p")
    )
    assert [row["p"] for row in said.orderBy("shopper_id").collect()] == pytest.approx(model.chances(wanted).tolist())
