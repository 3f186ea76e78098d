"""Why a pair is or is not scored, ranked and published: sentences from what the tables say of it, no table at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecomspark.features.candidates import JUDGED
from ecomspark.features.ranking import Policy

JOBS = ("score_candidates", "rank_candidates")
MADE_OF = {
    "query_digest": "text of the query",
    "passage_digest": "text of the item",
    "scorer_digest": "scorer",
    "calibration_digest": "calibration",
    "settings_digest": "policy",
}

_RANKED_FROM = ("candidates", "queries", "items", "scores")
_COUNTS = ("to_score", "scored", "failed", "reranked_queries", "kept_back_queries", "new", "changed", "removed")

Plain = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What is known of a pair. `policy`: None: the settings have no such variant. `sources`: None: no candidate.

    `tries`: rows of `scores` of the checkpoint that is ranked by, in order. `row`: of `rankings`, one of `row_count`.
    `made_of`: the digests that it would have now, None where there is none. `runs`: the last of each job, and
    `covering`, the last of rank_candidates that is over and brought the variant up to date; `settings_digest`: what
    such a run would have now. `versions`: of the tables now.
    """

    variant: str
    policy: Policy | None
    sources: Mapping[str, float] | None
    is_one_locale: bool
    lacks_text: Sequence[str]
    tries: Sequence[Plain]
    other_scorers: int
    max_tries: int
    scored_by: str
    ranked_by: str
    min_scored_share: float
    is_in_stock: bool | None
    kept: Plain | None
    hold: Plain | None
    row: Plain | None
    row_count: int
    made_of: Mapping[str, str | None]
    settings_digest: str
    runs: Mapping[str, Plain | None]
    versions: Mapping[str, int | None]

    @property
    def scored(self) -> Plain | None:
        """The first try with a logit: the one that counts."""
        return next((row for row in self.tries if row["logit"] is not None), None)

    @property
    def is_awaited(self) -> bool:
        """Whether the pair lacks a score that its query counts on."""
        return self.scored is None and not (self.tries and self.tries[-1]["error_kind"] == "lasting")

    @property
    def is_of_policy(self) -> bool:
        """Whether the variant ranks what proposed the pair, as `features.ranking.of_policy` has it."""
        if self.policy is None or self.sources is None:
            return False
        named = self.policy.proposed_by
        return any(source != JUDGED if named is None else source in named for source in self.sources)

    @property
    def is_left_out(self) -> bool:
        return self.is_in_stock is False and self.policy is not None and self.policy.unavailable == "out"

    @property
    def is_rankable(self) -> bool:
        """Whether a run would give the pair a rank, but for what stops its query or its variant as a whole."""
        return self.is_of_policy and self.scored is not None and not self.is_left_out


def why(facts: Facts) -> list[str]:
    """Step by step, from the candidate to the ranking, and what the last runs did."""
    steps = (of_candidate, of_score, of_policy, of_stops, of_publication, of_runs)
    return [sentence for step in steps for sentence in step(facts)]


def of_candidate(facts: Facts) -> list[str]:
    if facts.sources is not None:
        named = ", ".join(f"{source} ({score:.4g} when it first did)" for source, score in facts.sources.items())
        return [f"a candidate, proposed by {named}"]
    apart = "" if facts.is_one_locale else "; it is of another locale than the query, and BM25 looks within one"
    return [f"not a candidate: no source proposes it, so no run ranks it; how near it came is not known{apart}"]


def of_score(facts: Facts) -> list[str]:
    by = facts.ranked_by
    if facts.lacks_text:
        lacks = f"no text of the {' and '.join(facts.lacks_text)} under the recipe of {by}"
        return [f"not scored: {lacks}; run build_texts with it: score_candidates stops at a candidate without"]
    if facts.scored:
        twin = "" if facts.sources else "; it was a candidate once, or a pair of the same texts is one"
        return [f"scored by {by}, at try {facts.scored['attempt']}{twin}"]
    if not facts.tries:
        others = f"; other scorers that have: {facts.other_scorers}" if facts.other_scorers else ""
        return [f"not scored by {by}: never tried{_next_try(facts)}{others}"]
    last = facts.tries[-1]
    error = f"{last['error']} at try {last['attempt']}"
    if last["error_kind"] == "lasting":
        stays = "it is not tried again while its texts and the checkpoint stay, and its query does not wait for it"
        return [f"not scored: {error}, which lasts: {stays}"]
    if last["attempt"] < facts.max_tries:
        return [f"not scored yet: {error} of {facts.max_tries}, which may pass{_next_try(facts)}"]
    reached = "score_candidates.max_tries is reached: raise it; until then its query counts it as lacking"
    return [f"not scored: {error}, which might pass, but {reached}"]


def _next_try(facts: Facts) -> str:
    if facts.sources is None:
        return ""
    if facts.scored_by != facts.ranked_by:
        return f"; score_candidates.checkpoint is {facts.scored_by}: name the one that is ranked by"
    return "; the next run of score_candidates tries it"


def of_policy(facts: Facts) -> list[str]:
    variant, policy, said = facts.variant, facts.policy, []
    if policy is None:
        return [f"rank_candidates.variants has no {variant}: no run ranks it, and what it has published stays"]
    if facts.sources is not None and not facts.is_of_policy:
        named = policy.proposed_by
        which = "of any source but judged" if named is None else f"of {', '.join(named) or 'no source'} only"
        said.append(f"not ranked: {variant} ranks candidates {which}")
    if facts.is_in_stock is False:
        where = "left out" if facts.is_left_out else "behind all that can be bought"
        said.append(f"out of stock: {where}, by the policy of {variant}")
    return said


def of_stops(facts: Facts) -> list[str]:
    """What keeps the ranking of the query, or of the whole variant, as it was."""
    said, kept, hold, last = [], facts.kept, facts.hold, facts.runs["rank_candidates"]
    if kept:
        counts = f"{kept['scored_count']} of {kept['expected_count']} candidates had a score"
        asked = f"a share of {facts.min_scored_share:g} is asked for"
        said.append(f"its query was kept back by run {kept['changed_by']}: {counts}, {asked}; its old ranking stays")
    if hold:
        by = f"{hold['reason']}, by run {hold['set_by']}, since {hold['set_at']} UTC"
        lets = f"`ecomspark release --variant {facts.variant} --run-id ID --conf FILE` lets it go on"
        said.append(f"{facts.variant} is on hold ({by}): nothing of it is published; {lets}")
    waiting = last["rows"].get("waiting_to_switch") if last else None
    if last and waiting and facts.variant not in (last["covers"] or {}) and not hold:
        lacked = f"in run {last['run_id']} {waiting:,} queries of the variants that wait lacked scores"
        said.append(f"{facts.variant} goes over to another checkpoint in one commit: {lacked}")
    return said


def of_publication(facts: Facts) -> list[str]:
    row, by, moved = facts.row, facts.runs["covering"], _moved(facts)
    if row is None:
        if not facts.is_rankable or facts.kept or facts.hold:
            return [f"not published in {facts.variant}, for the reasons above"]
        if by is None:
            return [f"not published: no run of rank_candidates has brought {facts.variant} up to date"]
        if moved:
            return [f"not published yet: {moved}; the next run of rank_candidates looks at what changed"]
        return ["not published, and the tables do not say why: rank_candidates.full=true ranks every query again"]
    rank = f"rank {row['rank']} of {facts.row_count}"
    said = [f"published in {facts.variant} at {rank}, changed by run {row['changed_by']}"]
    if facts.policy is None:
        return said
    then = "once that is over" if facts.kept or facts.hold else "by the next run of rank_candidates"
    if other := [name for key, name in MADE_OF.items() if facts.made_of[key] not in (None, row[key])]:
        said.append(f"what is published is of another {', '.join(other)}: its query is looked at again {then}")
    if facts.is_of_policy and not facts.is_left_out and facts.is_awaited:
        share = f"a share of {facts.min_scored_share:g} of the query's candidates has a score"
        said.append(f"it stays as it is until {share}; without one of its own it leaves the ranking then")
    elif not facts.is_rankable:
        said.append(f"as things are now it has no rank: it leaves the ranking when its query is ranked again, {then}")
    if moved:
        said.append(f"{moved}; whether that touches the pair is not known")
    return said


def _moved(facts: Facts) -> str:
    """What is another than when a run last brought the variant up to date: versions of tables, settings."""
    by = facts.runs["covering"]
    if by is None:
        return ""
    then = {name: by["inputs"][name]["version"] for name in _RANKED_FROM if name in by["inputs"]}
    now = {name: facts.versions[name] for name in then}
    moved = [f"{name} went from version {then[name]} to {now[name]}" for name in then if then[name] != now[name]]
    moved += ["the settings became others"] if by["settings_digest"] != facts.settings_digest else []
    return f"since run {by['run_id']} of rank_candidates {', '.join(moved)}" if moved else ""


def of_runs(facts: Facts) -> list[str]:
    said = []
    meant = {JOBS[0]: ("scorer_digest", f"the scorer of {facts.ranked_by}"), JOBS[1]: ("variant", facts.variant)}
    for job, (key, name) in meant.items():
        last = facts.runs[job]
        if last is None:
            said.append(f"no run of {job} is known")
            continue
        error = f" with {last['error']}" if last["error"] else ""
        ended = f"ended {last['ended_at']} UTC" if last["ended_at"] else "not ended, or died"
        counts = [f"{last['rows'][what]:,} {what.replace('_', ' ')}" for what in _COUNTS if last["rows"].get(what)]
        covered = facts.variant if key == "variant" else facts.made_of[key]
        apart = [] if covered in (last["covers"] or {}) else [f"not about {name}"]
        what = ", a rollback" if "rollback" in last["seconds"] else ""
        told = ", ".join([f"{last['status']}{error}", f"as of {last['as_of']}", ended, *counts, *apart])
        said.append(f"the last run of {job}, {last['run_id']}{what}: {told}")
    return said
