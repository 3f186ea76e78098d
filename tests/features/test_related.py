"""What belongs together by what shoppers bought."""

from collections.abc import Callable
from typing import Any

from ecomspark.features.related import asked_and_bought, bought_together
from ecomspark.schemas import INTERACTIONS

Q, OTHER = b"q" * 16, b"o" * 16


def purchases(rows: Callable[..., Any], *of: dict[str, Any]) -> Any:
    return rows(INTERACTIONS, *({"interaction_id": str(at), "kind": "purchase", **one} for at, one in enumerate(of)))


def test_items_of_a_basket_belong_together_as_often_as_they_share_one(rows: Callable[..., Any]) -> None:
    baskets = {"1": "abc", "2": "ab", "3": "ac", "4": "d", "5": "abcdefgh", "6": "ef"}
    bought = [{"basket_id": basket, "item_id": item} for basket, items in baskets.items() for item in items]
    # Twice in one basket is once; without a basket nothing is known; a return is no purchase.
    more = [{"basket_id": "6", "item_id": "e"}, {"basket_id": None, "item_id": "a"},
            {"basket_id": "2", "item_id": "f", "kind": "return"}]  # fmt: skip
    interactions = purchases(rows, *bought, *more)

    def found(**how: int) -> set[tuple[str, str, int]]:
        settings = {"min_count": 1, "per_item": 9, "max_basket": 3, **how}
        return {tuple(row) for row in bought_together(interactions, **settings).collect()}

    assert found() == {
        ("a", "b", 2), ("b", "a", 2), ("a", "c", 2), ("c", "a", 2), ("b", "c", 1), ("c", "b", 1), ("e", "f", 1), ("f", "e", 1),
    }  # fmt: skip
    assert found(min_count=2) == {("a", "b", 2), ("b", "a", 2), ("a", "c", 2), ("c", "a", 2)}
    assert found(per_item=1) == {("a", "b", 2), ("b", "a", 2), ("c", "a", 2), ("e", "f", 1), ("f", "e", 1)}
    # What is in six more baskets is no longer the nearest, be they too large for pairs of their own.
    many = [{"basket_id": f"m{n}", "item_id": item} for n in range(6) for item in "bwxyz"]
    interactions = purchases(rows, *bought, *more, *many)
    assert {pair for pair in found(per_item=1) if pair[0] in "abc"} == {("a", "c", 2), ("b", "a", 2), ("c", "a", 2)}
    interactions = purchases(rows, *bought, *more)
    assert ("g", "h", 1) in found(max_basket=8)
    assert bought_together(interactions.limit(0), 1, 9, 3).isEmpty()


def test_a_query_belongs_to_what_was_bought_after_it(spark: Any, rows: Callable[..., Any]) -> None:
    known = spark.createDataFrame([("log", "1", Q), ("log", "2", Q), ("log", "3", OTHER)],
                                  "source string, source_query_id string, query_id binary")  # fmt: skip
    # Two aliases of one query count together; another source's, an unknown and a missing one do not count.
    asked = [("1", "a"), ("2", "a"), ("2", "b"), ("1", "c"), ("3", "a"), ("9", "a"), (None, "a")]
    of = [{"source": "log", "source_query_id": query, "item_id": item} for query, item in asked]
    interactions = purchases(rows, *of, {"source": "app", "source_query_id": "1", "item_id": "b"})

    def found(min_count: int, per_query: int) -> set[tuple[bytes, str, int]]:
        made = asked_and_bought(interactions, known, min_count, per_query)
        return {(bytes(row["query_id"]), row["item_id"], row["purchases"]) for row in made.collect()}

    assert found(1, 9) == {(Q, "a", 2), (Q, "b", 1), (Q, "c", 1), (OTHER, "a", 1)}
    assert found(1, 2) == {(Q, "a", 2), (Q, "b", 1), (OTHER, "a", 1)}
    assert found(2, 9) == {(Q, "a", 2)}
