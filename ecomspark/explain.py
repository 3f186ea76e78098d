"""`ecomspark explain`: what came of a query and an item, number by number, and why.

The query's text becomes its query_id in Python: no statement, plan, log or error holds it, only stdout shows it. What
the tables say now is read, by digests and buckets; no model is loaded. Not known: how near an item that nobody proposed
came to it, and whether a table's new version touches this pair.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F

from ecomspark import launch, metrics, tables, text
from ecomspark.config import is_name
from ecomspark.errors import ConfigError, ContractError
from ecomspark.features.ranking import LOGIT_DECIMALS, SCORE_DECIMALS, Policy
from ecomspark.features.texts import alias_sources, identities
from ecomspark.ledger import OVER
from ecomspark.models.checkpoint import Card, open_checkpoint
from ecomspark.schemas import (
    CANDIDATES,
    HOLDS,
    ITEMS,
    KEPT_BACK,
    QUERIES,
    QUERY_ALIASES,
    RANKINGS,
    RUNS,
    SCORES,
    TEXTS,
    Table,
)
from ecomspark.tables import Snapshot, Warehouse
from ecomspark.why import JOBS, Facts, Plain, why

TERMS = ("availability", "band", "relevance_term", "price_term", "sold_term", "rating_term", "freshness_term")

_READ = (ITEMS, QUERIES, QUERY_ALIASES, CANDIDATES, TEXTS, SCORES, RANKINGS, KEPT_BACK, HOLDS, RUNS)
_LOOKED_AT = 200  # runs of the two jobs
_BESIDE = 2  # neighbours above, and below
_LONG = ("description", "attributes")  # of an item, not shown to a person: they are in the text that the model reads


@dataclass(frozen=True)
class Explanation:
    """Plain values: digests are hexadecimal, times UTC. None where there is none."""

    query: Plain
    item: Plain
    variant: str
    texts: Plain
    checkpoint: Plain
    attempts: list[Plain]
    score: Plain | None
    ranking: Plain | None
    neighbours: list[Plain]
    runs: Plain
    versions: Plain
    why: list[str]

    def as_json(self) -> Plain:
        return dict(self.__dict__)


def show(
    path: Path, overrides: Sequence[str], pair: Mapping[str, Any], as_json: bool, pipelines: Mapping[str, Any]
) -> int:
    """Explain a pair (the arguments of `explain` behind the settings) on stdout; the exit status."""
    launch.log_to_stderr("text")
    with launch.ending_well() as ended:
        scoring, ranking = (launch.load_settings(pipelines[job], path, overrides) for job in JOBS)
        with launch.spark_session("explain", ranking) as spark:
            warehouse = Warehouse(spark, ranking.warehouse, ranking.buckets)
            found = explain(warehouse, scoring, ranking, **pair)
        print(json.dumps(found.as_json()) if as_json else "\n".join(as_lines(found)), flush=True)
    return ended.status


def explain(
    warehouse: Warehouse,
    scoring: Any,
    ranking: Any,
    query_text: str,
    item_id: str,
    locale: str | None = None,
    variant: str = "main",
) -> Explanation:
    """What is known of a pair under the settings of score_candidates and rank_candidates. `locale` None: the item's.

    Raises ContractError when the query or the item is not known, ConfigError when the query is empty.
    """
    if not is_name(variant):
        raise ConfigError("--variant: expected letters, digits and _ . = - only, 128 at most")
    made = open_checkpoint(
        ranking.models_folder, ranking.checkpoint, "cross_encoder", data_type=ranking.data_types.get(ranking.checkpoint)
    )
    card, policy, at = made.card, ranking.variants.get(variant), _Newest.of(warehouse)
    item = _known(at.rows(ITEMS, F.col("item_id") == item_id), "the item, found none of that id; see --item")
    query_id = _query_id(locale or item["locale"], query_text)
    query = _known(
        at.rows(QUERIES, F.col("query_id") == F.lit(query_id)),
        f"the query, found none of that text in the locale {'given' if locale else 'of the item'}; see --locale, or "
        "import it and run build_texts",
    )
    is_query, is_variant = F.col("query_id") == F.lit(query_id), F.col("variant") == variant
    candidates = at.rows(CANDIDATES, is_query & (F.col("item_id") == item_id), query_id)
    texts = at.texts(card.recipe.digest, query["text_source_digest"], item["source_digest"])
    scores = at.scores(texts) if all(texts.values()) else []
    published = sorted(at.rows(RANKINGS, is_query & is_variant, query_id), key=lambda row: row["rank"])
    row = next((one for one in published if one["item_id"] == item_id), None)
    scorer = made.scorer_digest.hex()
    facts = Facts(
        variant=variant,
        policy=policy,
        sources=candidates[0]["sources"] if candidates else None,
        lacks_text=[role for role, found in texts.items() if found is None],
        tries=[one for one in scores if one["scorer_digest"] == scorer],
        other_scorers=len({s["scorer_digest"] for s in scores if s["logit"] is not None} - {scorer}),
        max_tries=scoring.max_tries,
        scored_by=scoring.checkpoint,
        ranked_by=ranking.checkpoint,
        min_scored_share=ranking.min_scored_share,
        is_in_stock=item["is_in_stock"],
        is_one_locale=item["locale"] == query["locale"],
        kept=_first(at.rows(KEPT_BACK, is_query & is_variant & F.col("is_kept_back"))),
        hold=_first(at.rows(HOLDS, is_variant & (F.col("table_name") == RANKINGS.name))),
        row=row,
        row_count=len(published),
        made_of={
            **{f"{role}_digest": found["text_digest"] if found else None for role, found in texts.items()},
            "scorer_digest": scorer,
            "calibration_digest": card.calibration_digest.hex(),
            "settings_digest": text.settings_digest(policy).hex() if policy else None,
        },
        settings_digest=ranking.deciding_digest(scorer, card.calibration_digest.hex()).hex(),
        runs=at.runs(variant, row),
        versions=at.versions,
    )
    beside = [one for one in published if row and one is not row and abs(one["rank"] - row["rank"]) <= _BESIDE]
    titles = at.titles([one["item_id"] for one in beside])
    return Explanation(
        query={**query, "aliases": at.alias_count(query)},
        item=item,
        variant=variant,
        texts=texts,
        checkpoint=_checkpoint(made.name, card, facts),
        attempts=[{name: one[name] for name in ("attempt", "logit", "error", "error_kind")} for one in facts.tries],
        score=facts.scored and {**facts.scored, **_worth(facts.scored["logit"], card, policy)},
        ranking=row and {**row, "of": len(published), "terms": {t: RANKINGS.column(t).meaning for t in TERMS}},
        neighbours=[_neighbour(one, row, titles.get(one["item_id"])) for one in beside if row],
        runs=dict(facts.runs),
        versions=dict(at.versions),
        why=why(facts),
    )


@dataclass(frozen=True)
class _Newest:
    """The tables as they were when it was made; memory tables as they are when they are read."""

    warehouse: Warehouse
    at: Mapping[str, Snapshot | None]

    @classmethod
    def of(cls, warehouse: Warehouse) -> "_Newest":
        return cls(warehouse, {table.name: tables.snapshot(warehouse, table) for table in _READ})

    @property
    def versions(self) -> dict[str, int | None]:
        return {name: at.version if at else None for name, at in self.at.items()}

    def rows(self, table: Table, condition: Column, *digests: bytes) -> list[Plain]:
        """The rows of a condition as plain values. `digests`: of what the table is laid out by; of other parts of it
        nothing is read."""
        buckets = None
        if digests:
            wanted = self.warehouse.spark.createDataFrame([(digest,) for digest in digests], "digest binary")
            buckets = tables.buckets_of(self.warehouse, table, wanted)
        rows = (
            tables.read_memory(self.warehouse, table, buckets=buckets)
            if table.kind == "memory"
            else tables.read(self.warehouse, table, self.at[table.name], buckets)
        )
        return [_plain(row.asDict(recursive=True)) for row in rows.where(condition).collect()]

    def texts(self, recipe_digest: bytes, of_query: str, of_item: str) -> dict[str, Plain | None]:
        """What the model reads of a query and of an item, by role."""
        sources = [bytes.fromhex(of_query), bytes.fromhex(of_item)]
        is_made = F.col("source_digest").isin(sources) & (F.col("recipe_digest") == F.lit(recipe_digest))
        found = {(row["role"], row["source_digest"]): row for row in self.rows(TEXTS, is_made, *sources)}
        return {"query": found.get(("query", of_query)), "passage": found.get(("passage", of_item))}

    def scores(self, texts: Mapping[str, Any]) -> list[Plain]:
        """The tries of all scorers at a pair of texts, in order."""
        query, passage = (bytes.fromhex(texts[role]["text_digest"]) for role in ("query", "passage"))
        is_pair = (F.col("query_digest") == F.lit(query)) & (F.col("passage_digest") == F.lit(passage))
        return sorted(self.rows(SCORES, is_pair, query), key=lambda row: row["attempt"])

    def titles(self, item_ids: Sequence[str]) -> dict[str, str]:
        """Titles by item_id, of the items that are in the shop."""
        rows = self.rows(ITEMS, F.col("item_id").isin(list(item_ids))) if item_ids else []
        return {row["item_id"]: row["title"] for row in rows}

    def alias_count(self, query: Plain) -> int:
        """Of how many aliases the query is the text under identity recipe 1: made anew, for `texts` is laid out by what
        its texts were made of, not by what they are."""
        aliases = tables.read(self.warehouse, QUERY_ALIASES, self.at[QUERY_ALIASES.name])
        made = identities(alias_sources(aliases.where(F.col("locale") == query["locale"])))
        return made.where(F.col("text_digest") == F.lit(bytes.fromhex(query["text_source_digest"]))).count()

    def runs(self, variant: str, row: Plain | None) -> dict[str, Plain | None]:
        """The last run of each job; `covering` (see `Facts`); and `changed_by`, the one that last changed a row."""
        ranks = F.col("job") == "rank_candidates"
        is_maker = ranks & (F.col("run_id") == F.lit(row["changed_by"])) if row else F.lit(False)
        runs = tables.read(self.warehouse, RUNS, self.at[RUNS.name])
        of_jobs = runs.where(F.col("job").isin(*JOBS) & (F.col("status") != "planned"))
        latest = of_jobs.orderBy(F.desc(is_maker), F.desc_nulls_last("epoch"), F.desc("started_at")).limit(_LOOKED_AT)
        found = [_plain(one.asDict(recursive=True)) for one in latest.collect()]
        found.sort(key=lambda one: (one["epoch"] or 0, one["started_at"]), reverse=True)
        ranked = [one for one in found if one["job"] == "rank_candidates"]
        covering = [one for one in ranked if one["status"] in OVER and variant in (one["covers"] or {})]
        changed_by = [one for one in ranked if row and one["run_id"] == row["changed_by"]]
        last = {job: _first([one for one in found if one["job"] == job]) for job in JOBS}
        return {**last, "covering": _first(covering), "changed_by": _first(changed_by)}


def _query_id(locale: str, query_text: str) -> bytes:
    normalised = text.normalise_query(query_text)
    if not normalised:
        raise ConfigError("--query: nothing is left of it when it is normalised; give the text of a query")
    return text.digest(locale, normalised)


def _known(rows: Sequence[Plain], expected: str) -> Plain:
    if not rows:
        raise ContractError(f"explain: expected {expected}")
    return rows[0]


def _first(rows: Sequence[Plain]) -> Plain | None:
    return rows[0] if rows else None


def _plain(value: Any) -> Any:
    """A collected value as JSON has it. A timestamp comes bare, in the zone of this process."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


def _checkpoint(name: str, card: Card, facts: Facts) -> Plain:
    of_card = card.model_dump(
        mode="json", include={"base", "data", "metrics", "data_type", "max_tokens", "query_max_tokens"}
    )
    digests = {key: facts.made_of[key] for key in ("scorer_digest", "calibration_digest", "settings_digest")}
    return {"name": name, **of_card, **digests, "recipe_digest": card.recipe.digest.hex()}


def _worth(logit: float, card: Card, policy: Policy | None) -> Plain:
    """What `features.ranking` makes of a logit. `band` None: no policy, no bands."""
    gain = round(metrics.expected_gain(round(logit, LOGIT_DECIMALS), card.calibration), SCORE_DECIMALS)
    return {"relevance": gain, "band": sum(gain >= edge for edge in policy.bands) if policy else None}


def _neighbour(one: Plain, row: Plain, title: str | None) -> Plain:
    upper, lower = (one, row) if one["rank"] < row["rank"] else (row, one)
    term, lead = decided_by(upper, lower)
    return {**one, "title": title, "decided_by": term, "lead": lead}


def decided_by(upper: Plain, lower: Plain) -> tuple[str, float]:
    """What puts one item above another, and by how much: availability, else the band, else of the terms the one by
    which it leads most; between equal scores item_id.

    >>> alike = {**dict.fromkeys(TERMS, 0.0), "final_score": 0.3}
    >>> decided_by({**alike, "price_term": 0.1, "sold_term": 0.2, "final_score": 0.3}, {**alike, "final_score": 0.1})
    ('sold_term', 0.2)
    """
    leads = {term: round(upper[term] - lower[term], SCORE_DECIMALS) for term in TERMS}
    for step in ("availability", "band"):
        if leads[step]:
            return step, leads[step]
    most = max(TERMS, key=lambda term: leads[term])
    return (most, leads[most]) if upper["final_score"] != lower["final_score"] else ("item_id", 0.0)


def as_lines(found: Explanation) -> list[str]:
    """The explanation for a person, the why of it last."""
    row, by = found.ranking, found.runs["changed_by"]
    lines = [*_section("query", found.query), *_section("item", found.item, _LONG)]
    for role, read in found.texts.items():
        lines += _section(f"text of the {role} that the model reads", read)
    lines += _section("checkpoint", found.checkpoint)
    lines += [line for one in found.attempts if one["error"] for line in _section("error", one)]
    lines += _section("score", found.score)
    lines += _section(f"ranking {found.variant}", row, ("terms", *TERMS))
    lines += [f"  {term}: {row[term]:g} ({meaning})" for term, meaning in row["terms"].items()] if row else []
    lines += _section("made by the run", by and {key: by[key] for key in ("run_id", "as_of", "ended_at", "inputs")})
    for one in found.neighbours:
        terms = " + ".join(f"{one[term]:g}" for term in TERMS)
        apart = f"apart by {one['decided_by']}, {one['lead']:g}"
        lines.append(f"rank {one['rank']}: {one['item_id']}, {one['title']}: {one['final_score']:g} = {terms}; {apart}")
    lines += [*_section("versions", found.versions), "why"]
    return [*lines, *(f"  - {sentence}" for sentence in found.why)]


def _section(name: str, values: Plain | None, without: Sequence[str] = ()) -> list[str]:
    if values is None:
        return [f"{name}: none"]
    told = {key: "-" if value is None else value for key, value in values.items() if key not in without}
    return [name, *(f"  {key}: {value}" for key, value in told.items())]
