"""The nights of a history done by increments, in plain Python: what changed since the last run, by versions of tables.

Beside `history`, which knows only the shop as it is, this is the second way to the same end. A version of a table is
its whole content, so a change feed between two versions is their difference. Each rule can be forgotten, to see that a
history notices.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from history import (
    MAIN,
    QUERIES,
    VARIANTS,
    Abandoned,
    Crash,
    Item,
    Late,
    Night,
    Pair,
    Replay,
    Rollback,
    Row,
    Shown,
    State,
    Step,
    Unscored,
    Vacuum,
    candidates,
    changed,
    closed_up,
    differs,
    freshness,
    part_of,
    ranking,
)

# What may be forgotten, and so what the increments rest on.
RULES = {
    "new": "score the candidates that came",
    "texts": "score the candidates whose item's text changed",
    "looked": "look whether a pair has its score already",
    "items": "rank the queries again whose items changed in text or facts",
    "candidates": "rank the queries again whose candidates came or went",
    "scores": "rank the queries again that gained a score",
    "freshness": "rank the queries again whose items crossed a step of freshness",
    "kept_back": "rank the queries again that were kept back",
    "settings": "rank all queries again when other settings decided last time",
    "unread": "look at everything when a change feed cannot be read",
    "over": "go by the last run that is over, not by one that died",
    "variant": "go by the last run that covered the variant, not by one that covered another",
    "waiting": "leave the ranking of a query as it is while a score is lacking",
    "watermark": "a rollback takes the watermark of the run that it goes back to",
    "left_out": "rank the queries again of which a rollback left out items that were gone then",
    "strays": "rank the queries again whose rankings were moved by a run that is not over",
}


@dataclass(frozen=True)
class Run:
    """A row of `runs`: what it read at which versions; what it covered, to what decided that; the version of `rankings`
    that it left."""

    run_id: str
    inputs: Mapping[str, int]
    covers: Mapping[Any, object]
    day: date
    left: int = 0


@dataclass
class Table:
    """Every version of a table, by key; from which version on its changes can be read."""

    versions: list[dict[Any, Any]] = field(default_factory=lambda: [{}])
    readable_from: int = 0

    @property
    def version(self) -> int:
        return len(self.versions) - 1

    def publish(self, rows: dict[Any, Any]) -> None:
        if rows != self.versions[-1]:
            self.versions.append(rows)

    def changes(self, since: int, until: int) -> dict[Any, tuple[Any, Any]] | None:
        """Key to what it was and what it is, net; None when the feed cannot be read."""
        if since == until:
            return {}
        if since < self.readable_from:
            return None
        old, new = self.versions[since], self.versions[until]
        return {key: (old.get(key), new.get(key)) for key in {*old, *new} if old.get(key) != new.get(key)}


class Increments:
    """The tables, and the jobs on them. `forgotten`: rules that are not kept. `evaluated`: every pair that a scorer was
    asked for, in order."""

    def __init__(self, forgotten: Iterable[str] = ()) -> None:
        self.forgotten = frozenset(forgotten)
        if unknown := self.forgotten - set(RULES):
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}")
        self.shop = State()
        self.items, self.candidates, self.scores = Table(), Table(), Table()
        self.rankings, self.kept_back = Table(), Table()
        self.scorings: list[Run] = []
        self.rankers: list[Run] = []
        self.rollbacks = 0  # since when a run can be gone back to: its place in `rankers`
        self.evaluated: list[Pair] = []

    @property
    def shown(self) -> Shown:
        """The rankings as `history` has them."""
        by_query: dict[tuple[str, str], list[Row]] = {}
        for (variant, query, _), row in self.rankings.versions[-1].items():
            by_query.setdefault((variant, query), []).append(row)
        return {key: tuple(sorted(rows, key=lambda row: row.rank)) for key, rows in by_query.items()}

    def play(self, step: Step) -> None:
        """A step's night, job by job."""
        if isinstance(step, Replay):
            return
        self.shop = replace(self.shop, night=self.shop.night + 1)
        if isinstance(step, Rollback):
            self._roll_back(step.back, step.is_cut)
        point = getattr(step, "point", "")
        is_early = point in ("items", "candidates")
        self._import(step.change if hasattr(step, "change") else step, is_cut=point == "items")
        if isinstance(step, Abandoned) and is_early:
            return
        if is_early:
            self._import(step.meanwhile if isinstance(step, Late) else Night())
        if not isinstance(step, Unscored) and not self._scoring(step, point):
            return
        self._ranking(step, point)

    # -- the jobs

    def _import(self, change: Any, is_cut: bool = False) -> None:
        """Import and, if it is not cut off, build candidates. They are stamped with the run: one that comes back is
        another."""
        self.shop = changed(self.shop, change)
        if isinstance(change, Vacuum):
            for table in (self.items, self.candidates, self.scores, self.rankings):
                table.readable_from = table.version
            self.rollbacks = len(self.rankers)
        listed = {name: item for name, item in self.shop.items.items() if item.is_listed}
        self.items.publish(listed)
        if is_cut:
            return
        there = self.candidates.versions[-1]
        pairs = [(query, name) for query in QUERIES for name in candidates(self.shop, query)]
        stamp = f"{self.shop.run_id} {len(self.candidates.versions)}"
        self.candidates.publish({pair: there.get(pair, stamp) for pair in pairs})

    def _scoring(self, step: Step, point: str) -> bool:
        """Score; false when the night ends with it."""
        inputs = {"items": self.items.version, "candidates": self.candidates.version, "scores": self.scores.version}
        if point in ("scoring", "scores") and isinstance(step, Crash | Late | Abandoned):
            if point == "scores":
                self._score(inputs, is_cut=True)
            if isinstance(step, Abandoned):
                self._done(self.scorings, self._run(inputs, {self.shop.scorer: None}), is_over=False)
                return False
            if isinstance(step, Late):
                self._import(step.meanwhile)
            inputs = {**inputs, "scores": self.scores.version}  # a memory table is always read at its newest
        self._score(inputs)
        self._done(self.scorings, self._run(inputs, {self.shop.scorer: None}))
        return True

    def _ranking(self, step: Step, point: str) -> None:
        variants = [name for name in VARIANTS if name != MAIN or not isinstance(step, Rollback)]
        inputs = {"items": self.items.version, "candidates": self.candidates.version, "scores": self.scores.version}
        if point in ("ranking", "rankings") and isinstance(step, Crash | Late | Abandoned):
            if point == "rankings":
                self._rank(inputs, variants)
            if isinstance(step, Abandoned):
                self._done(self.rankers, self._run(inputs, dict.fromkeys(variants, self.shop.scorer)), is_over=False)
                return
            if isinstance(step, Late):
                self._import(step.meanwhile)
            inputs = {**inputs, "scores": self.scores.version}
        self._rank(inputs, variants)
        self._done(self.rankers, self._run(inputs, dict.fromkeys(variants, self.shop.scorer)))

    def _run(self, inputs: Mapping[str, int], covers: Mapping[Any, object]) -> Run:
        return Run(self.shop.run_id, inputs, covers, self.shop.day, self.rankings.version)

    def _done(self, runs: list[Run], run: Run, is_over: bool = True) -> None:
        if is_over or "over" in self.forgotten:
            runs.append(run)

    # -- scoring

    def _score(self, inputs: Mapping[str, int], is_cut: bool = False) -> None:
        items, there = self.items.versions[inputs["items"]], self.scores.versions[-1]
        pairs = {
            (query, items[name].passage, self.shop.scorer)
            for query, name in self._to_score(inputs)
            if name in items
        }  # fmt: skip
        needed = sorted(pairs if "looked" in self.forgotten else pairs - set(there))
        needed = part_of(needed) if is_cut else needed
        self.evaluated += needed
        self.scores.publish({**there, **dict.fromkeys(needed, True)})

    def _to_score(self, inputs: Mapping[str, int]) -> set[tuple[str, str]]:
        """The candidates that something changed for since the scorer's last run; all where that cannot be known."""
        all_of_them = set(self.candidates.versions[inputs["candidates"]])
        since = next((run for run in reversed(self.scorings) if self.shop.scorer in run.covers), None)
        if since is None:
            return all_of_them
        came = self._read("candidates", since, inputs)
        moved = self._read("items", since, inputs)
        if came is None or moved is None:
            return set() if "unread" in self.forgotten else all_of_them
        texts = {
            name
            for name, (old, new) in moved.items()
            if new is not None and (old is None or old.passage != new.passage)
        }  # fmt: skip
        new = {pair for pair, (old, _) in came.items() if old is None and "new" not in self.forgotten}
        of_texts = {pair for pair in all_of_them if pair[1] in texts and "texts" not in self.forgotten}
        return all_of_them & (new | of_texts)

    # -- ranking

    def _rank(self, inputs: Mapping[str, int], variants: list[str]) -> None:
        items, all_of_them = self.items.versions[inputs["items"]], self.candidates.versions[inputs["candidates"]]
        shown, kept = dict(self.rankings.versions[-1]), dict(self.kept_back.versions[-1])
        scores = self.scores.versions[-1]
        for variant, query in self._to_rank(inputs, variants):
            chosen = tuple((name, items[name]) for q, name in sorted(all_of_them) if q == query and name in items)
            is_waiting = any((query, item.passage, self.shop.scorer) not in scores for _, item in chosen)
            kept.pop((variant, query), None)
            if is_waiting:
                kept[variant, query] = True
                if "waiting" not in self.forgotten:
                    old = sorted(
                        (r for key, r in shown.items() if key[:2] == (variant, query)), key=lambda row: row.rank
                    )
                    still = {name for name, _ in chosen}
                    rows = closed_up(row for row in old if row.item in still)
                    self._put(shown, variant, query, rows, self.shop.run_id)
                    continue
                chosen = tuple(pair for pair in chosen if (query, pair[1].passage, self.shop.scorer) in scores)
            rows = ranking(variant, query, chosen, self.shop.scorer, self.shop.day)
            self._put(shown, variant, query, rows, self.shop.run_id)
        self.rankings.publish(shown)
        self.kept_back.publish(kept)

    def _put(
        self, shown: dict[Any, Row], variant: str, query: str, rows: Iterable[Row], run_id: str
    ) -> None:  # fmt: skip
        there = {key: row for key, row in shown.items() if key[:2] == (variant, query)}
        for key in there:
            del shown[key]
        for row in rows:
            key = (variant, query, row.item)
            is_same = key in there and not differs(there[key], row)
            shown[key] = there[key] if is_same else replace(row, changed_by=run_id)

    def _to_rank(self, inputs: Mapping[str, int], variants: list[str]) -> list[tuple[str, str]]:
        pairs = set(self.candidates.versions[inputs["candidates"]])
        touched = {
            key for key in self.kept_back.versions[-1] if key[0] in variants and "kept_back" not in self.forgotten
        }
        for variant in variants:
            covered = {variant} if "variant" not in self.forgotten else set(VARIANTS)
            since = next((run for run in reversed(self.rankers) if covered & set(run.covers)), None)
            is_alike = since is not None and since.covers.get(variant) == self.shop.scorer
            if since is None or (not is_alike and not self.forgotten & {"settings", "variant"}):
                queries: set[str] | None = None
            else:
                queries = self._moved(inputs, since, pairs, variant)
            touched |= {(variant, query) for query in (QUERIES if queries is None else queries)}
        return sorted(touched)

    def _moved(
        self, inputs: Mapping[str, int], since: Run, pairs: set[tuple[str, str]], variant: str
    ) -> set[str] | None:
        """The queries that something changed for since a run; None when that cannot be known."""
        feeds = [self._read(name, since, inputs) for name in ("items", "candidates", "scores")]
        strays = self.rankings.changes(since.left, self.rankings.version)
        if any(feed is None for feed in (*feeds, strays)):
            return set() if "unread" in self.forgotten else None
        of_items, of_candidates, of_scores = (feed or {} for feed in feeds)
        items = self.items.versions[inputs["items"]]
        found: set[str] = set()
        if "items" not in self.forgotten:
            found |= {query for query, name in pairs if name in of_items}
        if "candidates" not in self.forgotten:
            found |= {query for query, _ in of_candidates}
        if "scores" not in self.forgotten:
            mine = {pair for pair in of_scores if pair[2] == self.shop.scorer}
            found |= {q for q, name in pairs if name in items and (q, items[name].passage, self.shop.scorer) in mine}
        if "freshness" not in self.forgotten:
            found |= {q for q, name in pairs if name in items and self._is_aged(items[name], since.day)}
        if "strays" not in self.forgotten:
            found |= {query for of_variant, query, _ in strays or {} if of_variant == variant}
        return found

    def _is_aged(self, item: Item, then: date) -> bool:
        return freshness(item, then) != freshness(item, self.shop.day)

    def _read(self, name: str, since: Run, inputs: Mapping[str, int]) -> dict[Any, tuple[Any, Any]] | None:
        table: Table = getattr(self, name)
        return table.changes(since.inputs[name], inputs[name])

    # -- rollback

    def _roll_back(self, back: int, is_cut: bool) -> None:
        to = [run for run in self.rankers if MAIN in run.covers and self.rankers.index(run) >= self.rollbacks][
            -1 - back
        ]
        run_id, shown = f"back-{self.shop.night}", dict(self.rankings.versions[-1])
        items = self.items.versions[-1]
        whole = {key: row for key, row in self.rankings.versions[to.left].items() if key[0] == MAIN}
        then = {key: row for key, row in whole.items() if key[2] in items}
        for query in QUERIES:
            rows = sorted((row for key, row in then.items() if key[1] == query), key=lambda row: row.rank)
            self._put(shown, MAIN, query, closed_up(rows), run_id)
        self.rankings.publish(shown)
        if is_cut and "over" not in self.forgotten:
            return
        if "left_out" not in self.forgotten:
            short = {key[:2]: True for key in whole.keys() - then.keys()}
            self.kept_back.publish({**self.kept_back.versions[-1], **short})
        inputs = to.inputs if "watermark" not in self.forgotten else self.rankers[-1].inputs
        covers = {MAIN: to.covers[MAIN]}
        self.rankers.append(Run(run_id, inputs, covers, to.day, self.rankings.version))
