"""Which judged pairs make up a slice: a part of the queries, or of the items, that is looked at alone. Plain pandas.

A slice is named `family=part`. A family is there only where the data tell its parts apart: one in which all queries
are alike would say the same as `all`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

ALL = "all"
FAMILIES = (ALL, "traffic", "locale", "category", "words", "items", "long_tail")
_REST = "other"


@dataclass(frozen=True)
class Bounds:
    """Where slices begin and end. `grade_threshold`: from which an item counts as relevant to its query."""

    head_share: float = 1 / 3
    tail_share: float = 1 / 3
    longest_words: int = 4
    categories: int = 8
    category_parts: int = 1
    grade_threshold: float = 2
    few_matches: int = 20


def slices_of(pairs: pd.DataFrame, bounds: Bounds) -> dict[str, pd.Series]:
    """Name of a slice to which of `pairs` are in it, `all` first. Every family puts whole queries into one slice each,
    but `items`, which puts each query's items into two.

    `pairs`: query_id, item_id, grade, and of the query `traffic`, `locale`, `words` (how many it has), of the item
    `category` (null: none) and `is_new` (whether no training pair had it; null: not known); and where the long tail is
    wanted `matches`, how many items match the query's words.
    """
    queries = pairs.drop_duplicates("query_id").set_index("query_id").sort_index()
    found = {ALL: pd.Series(True, index=pairs.index)}
    for family, parts in (
        ("traffic", by_traffic(queries["traffic"], bounds.head_share, bounds.tail_share)),
        ("locale", queries["locale"]),
        ("category", by_category(pairs, bounds)),
        ("words", by_words(queries["words"], bounds.longest_words)),
    ):
        found.update(_told_apart(family, pairs["query_id"].map(parts)))
    parts = pairs["is_new"].map({True: "new", False: "seen"})
    found.update(_told_apart("items", parts))
    if "matches" in pairs:
        in_tail = pairs["query_id"].map(by_long_tail(queries["traffic"], queries["matches"], bounds))
        found.update(_told_apart("long_tail", in_tail))
    return found


def by_traffic(traffic: pd.Series, head_share: float, tail_share: float) -> pd.Series:
    """head, middle or tail by query: queries stand in falling order of their traffic (equal ones by query_id), and one
    is of the head if it begins within the first share of all traffic, of the tail if it begins within the last.

    No parts where all queries have the same traffic. `traffic`: by query_id, null counted as 0.
    """
    counted = traffic.fillna(0)
    if counted.nunique() < 2:
        return pd.Series(dtype=object)
    in_order = counted.sort_index().sort_values(ascending=False, kind="stable")
    before = in_order.cumsum() - in_order
    whole = in_order.sum()
    part = pd.Series("middle", index=in_order.index)
    part[before >= whole - tail_share * whole] = "tail"
    part[before < head_share * whole] = "head"
    return part


def by_long_tail(traffic: pd.Series, matches: pd.Series, bounds: Bounds) -> pd.Series:
    """yes or no by query: asked little (of the traffic's tail; where all are asked alike, each of them) and with fewer
    matches than `bounds.few_matches`. `traffic`, `matches`: by query_id."""
    parts = by_traffic(traffic, bounds.head_share, bounds.tail_share)
    is_rare = parts.reindex(traffic.index) == "tail" if len(parts) else pd.Series(True, index=traffic.index)
    return (is_rare & (matches < bounds.few_matches)).map({True: "yes", False: "no"})


def by_words(words: pd.Series, longest: int) -> pd.Series:
    """1, 2, 3 and so on by query, and `longest+` for all that have so many words or more."""
    return words.map(lambda count: f"{longest}+" if count >= longest else str(int(count)))


def by_category(pairs: pd.DataFrame, bounds: Bounds) -> pd.Series:
    """The category by query that most of its relevant items have (of equally many the first by name), and `other` for
    all but the categories of the most queries. A query without a relevant item that has one is in none.

    Of a path only the first parts count: `bounds.category_parts`.
    """
    relevant = pairs[(pairs["grade"] >= bounds.grade_threshold) & pairs["category"].notna()]
    if relevant.empty:
        return pd.Series(dtype=object)
    named = relevant["category"].map(lambda path: " > ".join(path.split(" > ")[: bounds.category_parts]))
    counts = relevant.assign(category=named).groupby(["query_id", "category"]).size().reset_index(name="items")
    first = counts.sort_values(["query_id", "items", "category"], ascending=[True, False, True])
    own = first.drop_duplicates("query_id").set_index("query_id")["category"]
    queries = own.value_counts().rename_axis("category").reset_index(name="queries")
    largest = queries.sort_values(["queries", "category"], ascending=[False, True])["category"].head(bounds.categories)
    return own.where(own.isin(largest), _REST)


def _told_apart(family: str, parts: pd.Series) -> Iterator[tuple[str, pd.Series]]:
    """The slices of a family, by name; none where it has one part only. `parts`: by row; null: in none."""
    names = sorted(parts.dropna().unique())
    if len(names) > 1 or (names and parts.isna().any()):
        yield from ((f"{family}={name}", parts == name) for name in names)
