"""What the tables of a small shop must hold after any history of nights, in plain Python: no Spark, no versions, no feeds.

Written from the rules, not from the code: a pair of texts is scored once per scorer, for ever; a query is ranked when
all of its candidates are scored by the scorer of the settings, and otherwise keeps its old ranking, less what is gone; a
row of a ranking changes when its rank, a term or a text behind it does. Not here: candidates by BM25 (they are given), errors
of the scorer, stock, ratings, categories.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache

from ecomspark.metrics import expected_gain

CALIBRATION = ((-1.0, 0.2), (1.0, 0.8))
SHIFT = 0.37  # what each scorer's logits are above those of the one before it
SCORERS = (0, 1, 2)
BANDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SOLD_CAP = 10_000
FRESHNESS = ((30, 1.0), (90, 0.5))
UNRATED = (3.5 - 1.0) / 4.0
WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "main": {"relevance": 0.6, "price": 0.1, "sold": 0.2, "rating": 0.05, "freshness": 0.05},
    "cheap": {"relevance": 0.1, "price": 0.7, "sold": 0.1, "rating": 0.0, "freshness": 0.1},
}
VARIANTS = tuple(WEIGHTS)
MAIN = "main"  # the variant that is rolled back
TERMS = ("relevance_term", "price_term", "sold_term", "rating_term", "freshness_term")
STEP, LOGIT_STEP = 1e-6, 1e-4

Pair = tuple[str, str, int]  # the query's text, the passage, the scorer


@dataclass(frozen=True)
class Item:
    title: str
    price: Decimal
    sold_count: int
    listed_on: date
    is_listed: bool = True

    @property
    def passage(self) -> str:
        return self.title.lower()


DAY = date(2011, 11, 1)
ITEMS: Mapping[str, Item] = {
    "a": Item("Red Ceramic Mug", Decimal("2.50"), 100, date(2011, 10, 20)),
    "b": Item("Blue Mug", Decimal("3.00"), 50, date(2011, 8, 10)),
    "c": Item("Red Wall Clock", Decimal("11.00"), 25, date(2011, 5, 5)),
    "d": Item("Garden Clock", Decimal("12.00"), 15, date(2011, 10, 10)),
    "e": Item("Gift Bag", Decimal("0.50"), 900, date(2010, 12, 1)),
}
PROPOSED: Mapping[str, tuple[str, ...]] = {
    "red mug": ("a", "b", "c"), "wall clock": ("b", "c", "d"), "gift bag": ("e",), "red": ("a", "c", "e"),
}  # fmt: skip
QUERIES = tuple(PROPOSED)
TITLES = ("Red Ceramic Mug", "Green Tea Mug", "Small Wooden Wall Clock")  # the first makes a twin
PRICES = (Decimal("0.40"), Decimal("2.50"), Decimal("40.00"))


@dataclass(frozen=True)
class Row:
    """A row of `rankings`, under its variant and query."""

    item: str
    rank: int
    final_score: float
    band: int
    relevance: float
    relevance_term: float
    price_term: float
    sold_term: float
    rating_term: float
    freshness_term: float
    logit: float
    passage: str
    scorer: int
    changed_by: str = ""


Shown = Mapping[tuple[str, str], tuple[Row, ...]]  # by variant and query, in rank order; a query without rows is none


# ---- what happens to the shop: each of these is a step by itself, and then an ordinary night follows it


@dataclass(frozen=True)
class Night:
    """Nothing changes."""


@dataclass(frozen=True)
class Edit:
    item: str
    title: str


@dataclass(frozen=True)
class Revert:
    """The title is again what it was at first."""

    item: str


@dataclass(frozen=True)
class Price:
    item: str
    price: Decimal


@dataclass(frozen=True)
class Delist:
    item: str


@dataclass(frozen=True)
class Relist:
    item: str


@dataclass(frozen=True)
class Propose:
    """The item is a candidate of the query from now on."""

    query: str
    item: str


@dataclass(frozen=True)
class Withdraw:
    """The item is no candidate of the query any more."""

    query: str
    item: str


@dataclass(frozen=True)
class NewScorer:
    """The settings name this scorer from now on; it may be one that they named before."""

    number: int


@dataclass(frozen=True)
class Vacuum:
    """No change feed of the past can be read any more, and no older version."""


@dataclass(frozen=True)
class Age:
    days: int


Change = Night | Edit | Revert | Price | Delist | Relist | Propose | Withdraw | NewScorer | Vacuum | Age

# ---- how a night can go otherwise

# Where a night dies: when items are imported and nothing else; when candidates are built; when scoring was opened; when
# a part of the scores has landed; when ranking was opened; when the rankings have landed and the run is still open.
POINTS = ("items", "candidates", "scoring", "scores", "ranking", "rankings")


@dataclass(frozen=True)
class Crash:
    """The night dies at a point and is run again under its run_ids."""

    point: str
    change: Change


@dataclass(frozen=True)
class Late:
    """Likewise, but before it is run again the catalogue moves on. What died goes on with what it had pinned."""

    point: str
    change: Change
    meanwhile: Change


@dataclass(frozen=True)
class Abandoned:
    """The night dies at a point and nobody runs it again; the next one has run_ids of its own."""

    point: str
    change: Change


@dataclass(frozen=True)
class Unscored:
    """A night without scoring: what changed is imported and ranked."""

    change: Change


@dataclass(frozen=True)
class Rollback:
    """`main` is put back to what it was so many runs ago; a night goes by while it is on hold; then it is released.

    `is_cut`: it dies when the rankings have landed, and nobody runs it again.
    """

    back: int
    change: Change
    is_cut: bool = False


@dataclass(frozen=True)
class Replay:
    """The run_ids of the last night, which came to its end, are given again."""


Step = Change | Crash | Late | Abandoned | Unscored | Rollback | Replay


@dataclass(frozen=True)
class State:
    """The shop and what its tables must hold. `left`: the runs that covered `main` and are over, with what they left
    of it, as far as it can still be read. `evaluations`: how often any scorer was asked for a pair."""

    items: Mapping[str, Item] = field(default_factory=lambda: ITEMS)
    proposed: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PROPOSED)
    scorer: int = 0
    day: date = DAY
    night: int = 0
    scored: frozenset[Pair] = frozenset()
    evaluations: int = 0
    shown: Shown = field(default_factory=dict)
    left: tuple[tuple[str, Shown], ...] = ()
    is_over: bool = True  # the last night came to its end, all of it

    @property
    def run_id(self) -> str:
        return f"night-{self.night}"


def first() -> State:
    """The shop after its first night."""
    return apply(State(), Night())


def is_possible(state: State, step: Step) -> bool:
    """Whether a step makes sense: an import that would empty the shop is refused by its guard, no run is rolled back to
    that is not there or whose version can no longer be read, and none is a replay that did not end."""
    if isinstance(step, Replay) and not state.is_over:
        return False
    after = state
    for change in [getattr(step, name) for name in ("change", "meanwhile") if hasattr(step, name)] or [step]:
        after = after if isinstance(change, Replay) else changed(after, change)
        if not any(item.is_listed for item in after.items.values()) or not any(after.proposed.values()):
            return False
    return not isinstance(step, Rollback) or (step.back < len(state.left) and not isinstance(step.change, Vacuum))


def apply(state: State, step: Step) -> State:
    """What a step's night, or what becomes of it, must leave."""
    if isinstance(step, Replay):
        return state
    is_over = not isinstance(step, Abandoned | Unscored)
    state = replace(state, night=state.night + 1, is_over=is_over)
    if isinstance(step, Crash):
        return ranked(scored(changed(state, step.change)), state.run_id)
    if isinstance(step, Late):
        return _late(changed(state, step.change), step)
    if isinstance(step, Abandoned):
        return _abandoned(changed(state, step.change), step.point)
    if isinstance(step, Unscored):
        return ranked(changed(state, step.change), state.run_id)
    if isinstance(step, Rollback):
        held = scored(changed(rolled_back(state, step.back, step.is_cut), step.change))
        return ranked(held, state.run_id, [name for name in VARIANTS if name != MAIN])
    return ranked(scored(changed(state, step)), state.run_id)


def _late(state: State, step: Late) -> State:
    if step.point in ("ranking", "rankings"):
        return changed(ranked(scored(state), state.run_id), step.meanwhile)
    if step.point in ("scoring", "scores"):  # ranking is opened later, and sees what came meanwhile
        return ranked(changed(scored(state), step.meanwhile), state.run_id)
    return ranked(scored(changed(state, step.meanwhile)), state.run_id)


def _abandoned(state: State, point: str) -> State:
    if point in ("items", "candidates", "scoring"):
        return state
    if point == "scores":
        return recorded(state, part_of(lacking(state)))
    state = scored(state)
    return state if point == "ranking" else ranked(state, state.run_id, is_over=False)


def changed(state: State, change: Change) -> State:
    """The shop after a change of it; the tables that are made of it as they were."""
    if isinstance(change, NewScorer):
        return replace(state, scorer=change.number)
    if isinstance(change, Age):
        return replace(state, day=state.day + timedelta(days=change.days))
    if isinstance(change, Vacuum):
        return replace(state, left=())
    if isinstance(change, Night):
        return state
    if isinstance(change, Propose | Withdraw):
        others = [name for name in state.proposed[change.query] if name != change.item]
        named = others if isinstance(change, Withdraw) else sorted([*others, change.item])
        return replace(state, proposed={**state.proposed, change.query: tuple(named)})
    item = state.items[change.item]
    if isinstance(change, Edit):
        item = replace(item, title=change.title)
    elif isinstance(change, Revert):
        item = replace(item, title=ITEMS[change.item].title)
    elif isinstance(change, Price):
        item = replace(item, price=change.price)
    else:
        item = replace(item, is_listed=isinstance(change, Relist))
    return replace(state, items={**state.items, change.item: item})


def candidates(state: State, query: str) -> tuple[str, ...]:
    return tuple(name for name in state.proposed[query] if state.items[name].is_listed)


def lacking(state: State) -> list[Pair]:
    """The pairs that the scorer has not been asked for yet, each once, whoever of the candidates has them."""
    wanted = {
        (query, state.items[name].passage, state.scorer)
        for query in QUERIES
        for name in candidates(state, query)
    }  # fmt: skip
    return sorted(wanted - state.scored)


def part_of(pairs: list[Pair]) -> list[Pair]:
    """What has landed of them when scoring dies halfway."""
    return pairs[: (len(pairs) + 1) // 2]


def scored(state: State) -> State:
    return recorded(state, lacking(state))


def recorded(state: State, pairs: list[Pair]) -> State:
    return replace(state, scored=state.scored | set(pairs), evaluations=state.evaluations + len(pairs))


def ranked(state: State, run_id: str, variants: list[str] | None = None, is_over: bool = True) -> State:
    """Every query ranked anew, but those that a candidate's score is lacking for: they keep the order of what is still
    among their candidates."""
    variants = list(VARIANTS) if variants is None else variants
    waiting = {query for query, _, _ in lacking(state)}
    shown = dict(state.shown)
    for variant in variants:
        for query in QUERIES:
            old = shown.get((variant, query), ())
            if query in waiting:
                rows = closed_up(row for row in old if row.item in candidates(state, query))
            else:
                chosen = tuple((name, state.items[name]) for name in candidates(state, query))
                rows = ranking(variant, query, chosen, state.scorer, state.day)
            shown[variant, query] = published(old, rows, run_id)
    state = replace(state, shown={key: rows for key, rows in shown.items() if rows})
    is_left = is_over and MAIN in variants
    return replace(state, left=(*state.left, (run_id, of_main(state.shown)))) if is_left else state


def rolled_back(state: State, back: int, is_cut: bool = False) -> State:
    """`main` as a run left it; items that are gone since stay out, and the ranks close up."""
    then, run_id = state.left[-1 - back][1], f"back-{state.night}"
    shown = {key: rows for key, rows in state.shown.items() if key[0] != MAIN}
    for key, rows in then.items():
        closed = closed_up(row for row in rows if state.items[row.item].is_listed)
        if closed:
            shown[key] = published(state.shown.get(key, ()), closed, run_id)
    state = replace(state, shown=shown)
    return state if is_cut else replace(state, left=(*state.left, (run_id, of_main(shown))))


def closed_up(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of a ranking, in order, of which some were left out, with ranks that leave none out."""
    return tuple(replace(row, rank=rank) for rank, row in enumerate(rows, 1))


def of_main(shown: Shown) -> Shown:
    return {key: rows for key, rows in shown.items() if key[0] == MAIN}


def published(old: tuple[Row, ...], new: tuple[Row, ...], run_id: str) -> tuple[Row, ...]:
    """`new`, but rows that do not differ are the old ones."""
    there = {row.item: row for row in old}
    return tuple(
        there[row.item]
        if row.item in there and not differs(there[row.item], row)
        else replace(row, changed_by=run_id)
        for row in new
    )  # fmt: skip


def differs(old: Row, new: Row) -> bool:
    """Whether a rank, a text behind it or the scorer is another, or a number is, by more than its step."""
    if (old.rank, old.band, old.passage, old.scorer) != (new.rank, new.band, new.passage, new.scorer):
        return True
    numbers = ("final_score", "relevance", *TERMS)
    is_moved = any(abs(getattr(new, name) - getattr(old, name)) > STEP for name in numbers)
    return is_moved or abs(new.logit - old.logit) > LOGIT_STEP


def logit(query: str, passage: str, scorer: int) -> float:
    """As `fakes.logit`, above it by a step a scorer."""
    return len(set(query) & set(passage)) / 4 - len(passage) / 50 + SHIFT * scorer


@lru_cache(maxsize=100_000)
def ranking(variant: str, query: str, chosen: tuple[tuple[str, Item], ...], scorer: int, day: date) -> tuple[Row, ...]:
    """A query's items in rank order, every term by its formula in `schemas.RANKINGS`."""
    weights = WEIGHTS[variant]
    total = sum(weights.values())
    prices = [item.price for _, item in chosen]
    rows = []
    for name, item in chosen:
        number = rounded(logit(query, item.passage, scorer), 4)
        relevance = rounded(expected_gain(number, CALIBRATION), 6)
        terms = {
            "relevance": relevance,
            "price": _cheapness(item.price, prices),
            "sold": min(1.0, math.log1p(item.sold_count) / math.log1p(SOLD_CAP)),
            "rating": UNRATED,
            "freshness": freshness(item, day),
        }
        weighted = {f"{term}_term": rounded(value * (weights[term] / total), 6) for term, value in terms.items()}
        band = sum(relevance >= edge for edge in BANDS)
        final = rounded(band + sum(weighted.values(), 0.0), 6)
        rows.append(Row(name, 0, final, band, relevance, **weighted, logit=number, passage=item.passage, scorer=scorer))
    best_first = sorted(rows, key=lambda row: (-row.band, -row.final_score, row.item))
    return tuple(replace(row, rank=rank) for rank, row in enumerate(best_first, 1))


def _cheapness(price: Decimal, prices: list[Decimal]) -> float:
    """1 less the percent rank; alone or among equals a price says nothing."""
    if min(prices) == max(prices):
        return 0.5
    return 1.0 - sum(other < price for other in prices) / (len(prices) - 1)


def freshness(item: Item, day: date) -> float:
    days = (day - item.listed_on).days
    return next((value for limit, value in FRESHNESS if 0 <= days <= limit), 0.0)


def rounded(number: float, decimals: int) -> float:
    """Half up, of the number as it is spelled: Spark's way."""
    return float(Decimal(repr(number)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))


# ---- histories


def random_histories(count: int, seed: int, most: int = 6) -> Iterator[tuple[Step, ...]]:
    """So many histories of up to `most` steps, each possible where it stands; the same for the same seed."""
    dice = random.Random(seed)
    for _ in range(count):
        state, steps = first(), []
        for _ in range(dice.randint(2, most)):
            step = random_step(dice)
            if is_possible(state, step):
                state = apply(state, step)
                steps.append(step)
        yield tuple(steps)


def random_step(dice: random.Random) -> Step:
    how = dice.choice([None, None, None, Crash, Late, Abandoned, Unscored, Rollback, Replay])
    if how is None:
        return random_change(dice)
    if how is Replay:
        return Replay()
    change = random_change(dice)
    if how is Rollback:
        return Rollback(dice.randint(0, 2), change, dice.random() < 0.2)
    if how is Unscored:
        return Unscored(change)
    point = dice.choice(POINTS)
    return Late(point, change, random_import(dice)) if how is Late else how(point, change)


def random_change(dice: random.Random) -> Change:
    kind = dice.choice(["import", "import", "import", "scorer", "vacuum", "age", "night"])
    if kind == "import":
        return random_import(dice)
    of_rest = {"scorer": NewScorer(dice.choice(SCORERS)), "vacuum": Vacuum(), "age": Age(dice.choice([5, 19, 90]))}
    return of_rest.get(kind, Night())


def random_import(dice: random.Random) -> Change:
    kinds = [Edit, Edit, Revert, Price, Price, Delist, Delist, Relist, Relist, Propose, Withdraw]
    kind, item = dice.choice(kinds), dice.choice(list(ITEMS))
    if kind is Edit:
        return Edit(item, dice.choice(TITLES))
    if kind in (Propose, Withdraw):
        return kind(dice.choice(QUERIES), item)
    return Price(item, dice.choice(PRICES)) if kind is Price else kind(item)
