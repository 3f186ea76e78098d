"""The figures of personal ranking: queries are generated as said, and nothing later than a basket is read for it."""

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from ecomspark.features.personal import Weights
from ecomspark.features.ranking import Policy

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

CODES = ["10001", "10002", "10003"]


def lines(*given: tuple[int, str, str, str, float]) -> pd.DataFrame:
    columns = ["customer", "invoice", "at", "code", "price"]
    made = pd.DataFrame(given, columns=columns).assign(units=1)
    return made.assign(at=pd.to_datetime(made["at"])).sort_values(["at", "invoice", "code"], ignore_index=True)


PAST = [(1, "i1", "2011-01-01", "10001", 1.0), (2, "i2", "2011-01-02", "10002", 3.0)]
ASKED = [(1, "i3", "2011-02-01", "10001", 1.0), (1, "i3", "2011-02-01", "10003", 9.0)]
LATER = [(1, "i4", "2011-03-01", "10002", 50.0), (2, "i5", "2011-03-02", "10001", 50.0)]


@pytest.fixture
def shop() -> Any:
    from personal import Shop

    items = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    return Shop(CODES, items, {"mug": 0}, np.array([[1.0, 0.0]]), np.array([[2.0, 1.0, 4.0]]), Policy())


def test_a_basket_is_asked_for_from_what_was_before_it_alone(shop: Any) -> None:
    from personal import ask

    heads, held_out = pd.Series("mug", index=CODES), pd.Series({1: "i3"})
    found = ask(lines(*PAST, *ASKED, *LATER), held_out, heads, shop)
    without = ask(lines(*PAST, *ASKED), held_out, heads, shop)
    for name, value in vars(found).items():
        assert np.array_equal(value, getattr(without, name)), name
    assert list(found.target) == [0], "10003 had been bought by nobody: it was not in the shop yet"
    assert list(found.is_new) == [False]
    assert np.isfinite(found.tier).sum() == 2
    assert list(found.profile[0, :2]) == [1.0, 0.0]
    assert list(found.price[0, :2]) == [1.0, 0.0], "all was bought below 2 pounds, the second item costs 3"
    # 10001: half of 2 / 2 and half of the cosine 1: band 9; 10002: 0.5 x 1 / 2: band 2.
    assert list(found.tier[0, :2]) == [9.0, 2.0]
    assert list(found.reciprocal_ranks(Weights(profile=1.0, session=1.0, price=1.0))) == [1.0]


def test_queries_are_the_last_words_or_the_word_that_most_titles_have() -> None:
    from personal import generated, titles

    of = pd.Series(["SET OF 6 RED MUG", "JUMBO BAG RED RETROSPOT", "LUNCH BAG SPACEBOY 20cm", "12"], index=list("abcd"))
    assert list(generated("head", of)) == ["red mug", "red retrospot", "bag spaceboy", ""]
    assert list(generated("kind", of)) == ["red", "red", "bag", ""]
    assert titles().str.contains("[A-Z]{3}").all()


def test_weights_are_those_with_the_best_mrr_and_of_equals_the_smallest() -> None:
    from personal import Asked, chosen

    def asked(profile: list[float]) -> Any:
        return Asked(
            customer=np.array([1.0]), is_new=np.array([True]), target=np.array([1]), tier=np.zeros((1, 2)),
            within=np.array([[0.5, 0.4]]), profile=np.array([profile]), session=np.zeros((1, 2)), price=np.zeros((1, 2)),
        )  # fmt: skip

    assert chosen(asked([0.0, 0.0])).total == 0.0, "nothing helps"
    assert chosen(asked([0.0, 1.0])).model_dump() == {"profile": 0.5, "session": 0.0, "price": 0.0}
