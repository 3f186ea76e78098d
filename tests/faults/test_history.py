"""Random histories of a shop: what the increments leave is what all of it done anew would have left."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from history import (
    ITEMS,
    POINTS,
    PRICES,
    QUERIES,
    SCORERS,
    TITLES,
    Abandoned,
    Age,
    Crash,
    Delist,
    Edit,
    Late,
    NewScorer,
    Night,
    Price,
    Propose,
    Relist,
    Replay,
    Revert,
    Rollback,
    Step,
    Unscored,
    Vacuum,
    Withdraw,
    apply,
    first,
    is_possible,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from increments import RULES, Increments
from replayed import Played, play
from shop import Shop

from ecomspark import tables

item = st.sampled_from(sorted(ITEMS))
imports = st.one_of(
    st.builds(Edit, item, st.sampled_from(TITLES)),
    st.builds(Revert, item),
    st.builds(Price, item, st.sampled_from(PRICES)),
    st.builds(Delist, item),
    st.builds(Relist, item),
    st.builds(Propose, st.sampled_from(QUERIES), item),
    st.builds(Withdraw, st.sampled_from(QUERIES), item),
)
changes = st.one_of(
    imports,
    imports,
    st.builds(NewScorer, st.sampled_from(SCORERS)),
    st.builds(Age, st.sampled_from([5, 19, 90])),
    st.builds(Vacuum),
    st.builds(Night),
)
points = st.sampled_from(POINTS)
steps = st.one_of(
    changes,
    st.builds(Crash, points, changes),
    st.builds(Late, points, changes, imports),
    st.builds(Abandoned, points, changes),
    st.builds(Unscored, changes),
    st.builds(Rollback, st.integers(0, 2), changes, st.booleans()),
    st.builds(Replay),
)


def lost(history: tuple[Step, ...], *forgotten: str) -> str:
    """What the increments lose of a history, in words; nothing if they do not. A night without news ends it."""
    state, tables = first(), Increments(forgotten)
    tables.play(Night())
    for step in (*history, Night()):
        if not is_possible(state, step):
            continue
        before = tables.shown
        state = apply(state, step)
        tables.play(step)
        if tables.shown != state.shown:
            return f"{step}: rankings {tables.shown}, expected {state.shown}"
        if set(tables.scores.versions[-1]) != state.scored:
            return f"{step}: scores"
        if len(tables.evaluated) != len(set(tables.evaluated)) or len(tables.evaluated) != state.evaluations:
            return f"{step}: a pair was scored twice"
        if any(len({row.scorer for row in rows}) > 1 for rows in tables.shown.values()):
            return f"{step}: a query has several scorers"
        if isinstance(step, Replay) and tables.shown != before:
            return f"{step}: a replay changed something"
    return ""


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(steps, max_size=6).map(tuple))
def test_the_rules_of_increments_lose_nothing(history: tuple[Step, ...]) -> None:
    assert not lost(history)


# For each rule, the shortest history found in which it is missed.
MISSED: dict[str, tuple[Step, ...]] = {
    "new": (Propose("wall clock", "a"),),
    "texts": (Edit("a", "Green Tea Mug"),),
    "looked": (Edit("b", "Red Ceramic Mug"),),
    "items": (Edit("b", "Red Ceramic Mug"),),
    "candidates": (Delist("a"),),
    "scores": (Unscored(Propose("red mug", "e")), Revert("c"), Rollback(1, Night())),
    "freshness": (Age(19),),
    "settings": (NewScorer(1), NewScorer(0)),
    "unread": (Abandoned("items", Delist("e")), Vacuum()),
    "over": (Abandoned("ranking", Delist("a")),),
    "variant": (Rollback(0, Edit("a", "Green Tea Mug")),),
    "waiting": (Unscored(Edit("a", "Green Tea Mug")),),
    "watermark": (Edit("a", "Green Tea Mug"), Rollback(1, Night())),
    "left_out": (Abandoned("items", Delist("a")), Rollback(0, Relist("a"))),
    "strays": (Abandoned("rankings", Price("a", Decimal("40.00"))), Price("a", ITEMS["a"].price)),
}


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"kept_back"}))
def test_a_rule_that_is_forgotten_is_missed(rule: str) -> None:
    assert not lost(MISSED[rule])
    assert lost(MISSED[rule], rule), RULES[rule]


def test_what_was_kept_back_is_found_by_its_scores_too() -> None:
    """But for what a rollback leaves out the two rules watch over each other: either alone may be forgotten."""
    history = (Unscored(NewScorer(1)),)
    assert not lost(history, "kept_back")
    assert lost(history, "kept_back", "scores")


@pytest.fixture(scope="module")
def first_night(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played.opened(Shop(spark, tmp_path_factory.mktemp("history")))


# What was missed once, and some more on top of it.
PLAYED: dict[str, tuple[Step, ...]] = {
    "strays": (*MISSED["strays"], Crash("scores", NewScorer(1)), Age(19)),
    "left_out": (*MISSED["left_out"], Night(), Unscored(Edit("c", "Green Tea Mug")), Unscored(Delist("b"))),
}


@pytest.mark.nightly
@pytest.mark.parametrize("rule", sorted(PLAYED))
def test_the_tables_hold_what_the_model_says(first_night: Played, tmp_path: Path, rule: str) -> None:
    assert lost(PLAYED[rule], rule), RULES[rule]
    play(first_night.copy(tmp_path), PLAYED[rule])


@pytest.mark.nightly
def test_a_run_that_failed_halfway_leaves_its_scores_to_the_next(
    first_night: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = tables.append_memory

    def failing(*given: Any) -> None:
        append(*given)
        raise RuntimeError("after the first part")

    played = first_night.copy(tmp_path)
    played.state = apply(played.state, NewScorer(1))
    with monkeypatch.context() as patch:
        patch.setattr(tables, "append_memory", failing)
        with pytest.raises(RuntimeError, match="first part"):
            played.score("failed")
    played.score(played.state.run_id)
    assert played.asked == played.state.evaluations
