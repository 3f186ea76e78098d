"""A history played on Spark, with the real jobs and a fake in the scorer's place, and compared after each step with
what `history` says that the tables must hold."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from fakes import Traced
from history import (
    CALIBRATION,
    MAIN,
    QUERIES,
    SHIFT,
    TERMS,
    WEIGHTS,
    Abandoned,
    Delist,
    Edit,
    Late,
    Price,
    Propose,
    Relist,
    Replay,
    Revert,
    Rollback,
    Row,
    State,
    Step,
    Unscored,
    Vacuum,
    Withdraw,
    apply,
    changed,
    first,
    is_possible,
    lacking,
    logit,
)
from shop import Shop

from ecomspark import holds, tables
from ecomspark.config import LeaseSettings
from ecomspark.errors import OnHold
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.pipelines import rank_candidates, score_candidates
from ecomspark.schemas import CANDIDATES, ITEMS, RANKINGS, SCORES
from ecomspark.tables import Author
from ecomspark.text import digest

LOCALE = "uk"  # of all items and queries in shop.py
_VARIANTS = {name: {"proposed_by": ["judged"], "weights": dict(weights)} for name, weights in WEIGHTS.items()}
_ALIVE = {"wait_seconds": 60.0}
_DYING = {"seconds": 2.0, "wait_seconds": 60.0}  # a night that nobody runs again leaves its leases to run out
_VACUUMED = (ITEMS, CANDIDATES, RANKINGS)


class Dead(BaseException):
    """The driver was killed here: nothing of ours sees it as an error, and a run's row stays open."""


def play(played: "Played", history: Iterable[Step]) -> None:
    """Take the steps that are possible one by one, and see after each that the tables hold what they must."""
    for step in history:
        if is_possible(played.state, step):
            played.step(step)
            played.check(step)


@dataclass
class Played:
    """A shop, the state that its tables must hold, and the folder where the scorers leave their traces."""

    shop: Shop
    state: State = field(default_factory=first)
    is_unbuilt: bool = False  # items were imported, and candidates not built from them

    @classmethod
    def opened(cls, shop: Shop) -> "Played":
        """The shop of `history` after its first night, in an empty folder."""
        (shop.folder / "traces").mkdir()
        played = cls(shop)
        state = played.state
        played._write(state)
        for job in ("import_items", "import_queries", "import_judgments", "build_texts", "build_candidates"):
            played._run(job, state.run_id)
        played.score(state.run_id)
        played.rank(state.run_id)
        return played

    def copy(self, folder: Path) -> "Played":
        return Played(self.shop.copy(folder), self.state)

    def step(self, step: Step) -> None:
        """One step's night with as few jobs as it needs."""
        before, self.state = self.state, apply(self.state, step)
        run_id, point = self.state.run_id, getattr(step, "point", "")
        if isinstance(step, Replay):
            # Imports would be replayed likewise; the two that make something are enough.
            assert self.score(run_id).status == self.rank(run_id).status == "replayed"
            return
        if isinstance(step, Rollback):
            self._roll_back(before.left[-1 - step.back][0], step.is_cut)
        change = step.change if hasattr(step, "change") else step
        self._change(before, change, run_id, is_cut=point == "items")
        if point in ("items", "candidates"):
            if isinstance(step, Abandoned):
                return
            if isinstance(step, Late):
                self._change(changed(before, change), step.meanwhile, f"{run_id}-late")
        if not isinstance(step, Unscored) and not self._dies(step, "scoring", "scores", self.score, before):
            self.score(run_id)
        if isinstance(step, Abandoned) and point not in ("ranking", "rankings"):
            return
        if not self._dies(step, "ranking", "rankings", self.rank, before):
            self.rank(run_id, is_held=isinstance(step, Rollback))
        if isinstance(step, Rollback):
            holds.release(self.shop.warehouse, MAIN, Author("release", run_id))

    def _dies(self, step: Any, opened: str, landed: str, job: Callable[..., Any], before: State) -> bool:
        """Let a job die if the step says so; whether it stays like that."""
        point = getattr(step, "point", "")
        if point not in (opened, landed):
            return False
        with dying(self.shop, point):
            job(self.state.run_id, leases=_DYING if isinstance(step, Abandoned) else _ALIVE)
        if isinstance(step, Late):
            self._change(changed(before, step.change), step.meanwhile, f"{self.state.run_id}-late")
        return isinstance(step, Abandoned)

    # -- jobs

    def _write(self, state: State) -> None:
        listed = {name: item for name, item in state.items.items() if item.is_listed}
        rows = [(name, i.title, str(i.price), i.sold_count, i.listed_on) for name, i in listed.items()]
        self.shop.write_items(rows)
        self.shop.write("queries", "id,query,traffic", [(query, query, 1) for query in QUERIES])
        proposed = [(query, name, 1) for query, names in state.proposed.items() for name in names]
        self.shop.write("judgments", "id,sku,grade", proposed)

    def _change(self, before: State, change: Any, run_id: str, is_cut: bool = False) -> None:
        if isinstance(change, Vacuum):
            self._vacuum()
        self._write(changed(before, change))
        jobs = []
        if isinstance(change, Edit | Revert | Price | Delist | Relist):
            jobs.append("import_items")
        if isinstance(change, Propose | Withdraw):
            jobs.append("import_judgments")
        is_moved = isinstance(change, Delist | Relist | Propose | Withdraw) or self.is_unbuilt
        self.is_unbuilt = is_cut and is_moved
        if not is_cut:
            jobs += ["build_texts"] if is_moved or isinstance(change, Edit | Revert) else []
            jobs += ["build_candidates"] if is_moved else []
        for job in jobs:
            self._run(job, run_id)

    def _run(self, job: str, run_id: str) -> Any:
        settings: dict[str, Any] = {"import_items": {"max_deleted_share": 1.0},
                                    "import_judgments": {"max_deleted_share": 1.0},
                                    "build_candidates": {"sources": ["judged"]}}  # fmt: skip
        return self.shop.run(job, run_id, self.state.day, leases=_ALIVE, **settings.get(job, {}))

    def score(self, run_id: str, leases: dict[str, float] = _ALIVE) -> Any:
        number = self.state.scorer
        config = self.shop.config("score_candidates", checkpoint=f"scorer-{number}", pairs_per_commit=4, leases=leases)
        scorer = Traced(str(self.shop.folder / "traces"), shift=SHIFT * number)
        shop, checkpoint = self.shop, self._checkpoint(number)
        return score_candidates.run_with(shop.spark, config, run_id, checkpoint, scorer, self.state.day)

    def rank(self, run_id: str, leases: dict[str, float] = _ALIVE, is_held: bool = False) -> Any:
        number = self.state.scorer
        self._checkpoint(number)
        changes = {"checkpoint": f"scorer-{number}", "variants": _VARIANTS, "leases": leases}
        if not is_held:
            return self.shop.run("rank_candidates", run_id, self.state.day, **changes)
        with pytest.raises(OnHold):
            self.shop.run("rank_candidates", run_id, self.state.day, **changes)
        return None

    def _roll_back(self, to: str, is_cut: bool) -> None:
        leases = LeaseSettings(**(_DYING if is_cut else _ALIVE))
        with dying(self.shop, "rankings" if is_cut else ""):
            holds.roll_back(self.shop.warehouse, to, MAIN, f"back-{self.state.night}", leases)

    def _checkpoint(self, number: int) -> Checkpoint:
        """A tiny model that nothing is asked of but its digest and its calibration."""
        name = f"scorer-{number}"
        if not (self.shop.models / name).exists():
            tiny.checkpoint(self.shop.models, name, seed=20 + number, calibration=list(CALIBRATION))
        return open_checkpoint(self.shop.models, name, "cross_encoder")

    def _vacuum(self) -> None:
        """No old version and no change feed can be read any more."""
        spark, check = self.shop.spark, "spark.databricks.delta.retentionDurationCheck.enabled"
        spark.conf.set(check, "false")
        try:
            for table in _VACUUMED:
                folder = self.shop.warehouse.path(table)
                spark.sql(f"VACUUM {self.shop.warehouse.name(table)} RETAIN 0 HOURS")
                shutil.rmtree(Path(str(folder)) / "_change_data", ignore_errors=True)
        finally:
            spark.conf.unset(check)

    # -- what must hold

    @property
    def asked(self) -> int:
        """How often the scorers were asked for a pair."""
        return len(Traced(str(self.shop.folder / "traces")).evaluated())

    def check(self, step: Step) -> None:
        """Compare keys, ranks, terms, who changed them last, scores, and how often the scorers were asked."""
        asked = self.asked
        rows = self.shop.spark.read.format("delta").load(self.shop.warehouse.path(SCORES)).collect()
        by_pair = {(bytes(r["query_digest"]), bytes(r["passage_digest"]), bytes(r["scorer_digest"])): r for r in rows}
        assert len(by_pair) == len(rows) == asked, f"{step}: a pair was scored twice"
        if isinstance(step, Abandoned) and step.point == "scores":
            self._adopt(by_pair)
        expected = {self._key(*pair): logit(*pair) for pair in self.state.scored}
        assert set(by_pair) == set(expected), f"{step}: other pairs were scored"
        assert asked == self.state.evaluations, f"{step}: scorers were asked too often"
        for key, number in expected.items():
            assert by_pair[key]["logit"] == pytest.approx(number, abs=1e-6)
        self._check_rankings(step)

    def _adopt(self, by_pair: dict[tuple[bytes, bytes, bytes], Any]) -> None:
        """Which part of the scores landed before a death is nobody's promise: take what did."""
        before = replace(self.state, scored=frozenset(p for p in self.state.scored if self._key(*p) in by_pair))
        may_be = self.state.scored | set(lacking(before))
        landed = frozenset(pair for pair in may_be if self._key(*pair) in by_pair)
        self.state = replace(self.state, scored=landed, evaluations=len(landed))

    def _check_rankings(self, step: Step) -> None:
        names = {digest(LOCALE, query): query for query in QUERIES}
        shown: dict[tuple[str, str], list[Any]] = {}
        for row in self.shop.rows(RANKINGS).orderBy("rank").collect():
            shown.setdefault((row["variant"], names[bytes(row["query_id"])]), []).append(row)
        assert set(shown) == set(self.state.shown), f"{step}: other queries are ranked"
        for (variant, query), rows in self.state.shown.items():
            place = f"{step}: {variant}: {query}"
            found = shown[variant, query]
            assert [(r["item_id"], r["rank"]) for r in found] == [(row.item, row.rank) for row in rows], place
            for there, row in zip(found, rows, strict=True):
                self._check_row(place, query, there, row)

    def _check_row(self, place: str, query: str, there: Any, row: Row) -> None:
        assert self._key(query, row.passage, row.scorer) == tuple(
            bytes(there[f"{name}_digest"]) for name in ("query", "passage", "scorer")
        ), place
        names = ("final_score", "band", "relevance", *TERMS, "logit")
        expected = [getattr(row, name) for name in names]
        assert [there[name] for name in names] == pytest.approx(expected, abs=1e-9), f"{place}: {row.item}"
        assert there["changed_by"] == row.changed_by, f"{place}: {row.item}"

    def _key(self, query: str, passage: str, scorer: int) -> tuple[bytes, bytes, bytes]:
        return digest(query), digest(passage), self._checkpoint(scorer).scorer_digest


@contextmanager
def dying(shop: Shop, point: str) -> Iterator[None]:
    """Let what runs within die at a point; '' lets it live. A job that has nothing to do there lives, too."""

    def die(*_: Any) -> None:
        raise Dead(point)

    def appended(*given: Any) -> None:
        append(*given)
        raise Dead(point)

    def published(warehouse: Any, change: Any, author: Any) -> Any:
        commit = publish(warehouse, change, author)
        if change.table is RANKINGS:
            raise Dead(point)
        return commit

    append, publish = tables.append_memory, tables.publish
    places: dict[str, tuple[Any, str, Any]] = {
        "scoring": (score_candidates, "find", die), "scores": (tables, "append_memory", appended),
        "ranking": (rank_candidates, "find", die), "rankings": (tables, "publish", published),
    }  # fmt: skip
    if not point:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*places[point])
        try:
            yield
        except Dead:
            shop.spark.catalog.clearCache()  # it dies with its driver
