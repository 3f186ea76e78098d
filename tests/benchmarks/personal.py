"""Personal ranking against the general one on the Online Retail log: MRR of what a customer bought next.

    make figures OUT=figures.json ONLY=shoppers

No set here has queries, texts and behaviour together, so the queries are GENERATED: the last two words of the bought
item's title (`head`: red retrospot, light holder), or of its words the one that most titles have (`kind`: bag, heart).
Each distinct item of a customer's held-out basket is asked for once; customers count alike, whatever they bought.

Held out for the figure is the last basket of every customer who has an earlier one; weights are chosen on the basket
before it, of customers who have a still earlier one. Whatever a basket is predicted from, prices, units sold and the
shop's items included, comes from invoices before it. Items that nobody had bought before it are not in the shop yet.

The general ranking is `features.ranking`'s default policy: bands of relevance, within them relevance, price, units sold,
freshness. There is no cross-encoder for this shop's queries without leaking: relevance is half BM25 over titles, as a
share of the query's best, half the cosine of query and title; the 100 best by BM25 are ranked.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from ecomspark.demo_data import make_sample
from ecomspark.features.personal import Weights, affinity_term, personal_score
from ecomspark.features.ranking import SCORE_DECIMALS, Policy
from ecomspark.metrics import Interval, bootstrap
from ecomspark.text import Analyser, TextRecipe, terms

CANDIDATES, HALF_LIFE_DAYS, RESAMPLES, SEED = 100, 90.0, 2_000, 20_261_126
PRICE_BANDS = (2.0, 5.0, 10.0, 20.0)
WORDS = re.compile(r"[a-z]{3,}|(?<![a-z])t(?![a-z])")  # T-LIGHT is two words, and the one letter that is kept
NO_KIND = {"set", "pack", "and", "with", "for", "the", "assorted", "design", "small", "large", "mini"}
GRID = {"profile": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), "session": (0.0, 0.5, 1.0, 2.0, 4.0), "price": (0.0, 0.25, 0.5, 1.0)}

Array = NDArray[Any]


@dataclass(frozen=True)
class Asked:
    """Queries by their candidates, (queries, CANDIDATES): those that lack have a tier of -inf. Cosines and shares are
    the customer's. `target`: the bought item's place among the candidates, -1 where it is none of them."""

    customer: Array
    is_new: Array
    target: Array
    tier: Array
    within: Array
    profile: Array
    session: Array
    price: Array

    def ranks(self, weights: Weights) -> Array:
        """The rank of every candidate of every query, as `features.personal` orders them: (queries, CANDIDATES)."""
        personal = sum(
            np.round(term, SCORE_DECIMALS)
            for term in (
                affinity_term(weights.profile, self.profile),
                affinity_term(weights.session, self.session),
                weights.price * self.price,
            )
        )
        score = np.round(personal_score(self.tier, self.within, personal, weights.total), SCORE_DECIMALS)
        # Candidates stand in the order of item_id and sorts are stable: by tier, then score, then item_id.
        order = np.lexsort((-score, -self.tier), axis=1)
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(1, order.shape[1] + 1)[None, :], axis=1)
        return ranks

    def reciprocal_ranks(self, weights: Weights) -> Array:
        """Of the bought item, 0 where it is no candidate."""
        found = np.take_along_axis(self.ranks(weights), np.maximum(self.target, 0)[:, None], axis=1)[:, 0]
        return np.where(self.target >= 0, 1.0 / found, 0.0)

    def by_customer(self, values: Array, among: Array | None = None) -> pd.Series:
        """Means by customer, in the customers' order."""
        of = pd.Series(values).groupby(self.customer) if among is None else (
            pd.Series(values[among]).groupby(self.customer[among]))  # fmt: skip
        return of.mean()


def purchases() -> pd.DataFrame:
    """customer, invoice, at, code, price, units of usable purchase lines of products, titles that are notes left out."""
    lines = pd.read_parquet(make_sample.HERE / "online_retail_lines.parquet")
    lines = lines.assign(code=lines["StockCode"].str.strip().str.upper())
    is_sale = (lines["Quantity"] > 0) & (lines["UnitPrice"] > 0) & ~lines["InvoiceNo"].str.startswith("C")
    kept = lines[is_sale & lines["code"].str.fullmatch(r"\d{5}[A-Z]{0,2}") & lines["code"].isin(titles().index)]
    named = {"CustomerID": "customer", "InvoiceNo": "invoice", "InvoiceDate": "at", "UnitPrice": "price",
             "Quantity": "units"}  # fmt: skip
    return kept.rename(columns=named)[["customer", "invoice", "at", "code", "price", "units"]].sort_values(
        ["at", "invoice", "code"], ignore_index=True
    )


def titles() -> pd.Series:
    """Title by code, of products; the shop prints titles in capitals, its warehouse's notes (check, damaged) are not."""
    found = make_sample.titles()
    is_title = found.str.contains(r"[A-Z]{3}") & found.index.str.fullmatch(r"\d{5}[A-Z]{0,2}")
    return found[is_title].sort_index()


def generated(how: str, of: pd.Series) -> pd.Series:
    """The query that is generated for each title; empty for one without words."""
    words = of.str.lower().map(WORDS.findall)
    if how == "head":
        return words.map(lambda found: " ".join(found[-2:]))
    shared = Counter(word for found in words for word in set(found) - NO_KIND if len(word) > 1)
    return words.map(lambda found: max(set(found) & set(shared), key=lambda word: (shared[word], word), default=""))


def vectors(folder: Path, of_titles: list[str], of_queries: list[str]) -> tuple[str, Array, Array]:
    """Which encoder, and its unit vectors: MiniLM as it comes. The towers of `towers_online_retail` have seen baskets
    that are held out here."""
    import training

    from ecomspark.models import embedder
    from ecomspark.models.checkpoint import open_checkpoint
    from ecomspark.text import passage, query

    name = training.base(folder)
    checkpoint, recipe = open_checkpoint(folder, name, "encoder"), TextRecipe()
    model = embedder.load(checkpoint.folder, checkpoint.scorer_digest, token_budget=4096)
    passages = model.embed([passage({"title": title}, recipe)[0] for title in of_titles], "passage")
    queries = model.embed([query(text, recipe)[0] for text in of_queries], "query")
    return name, _unit(np.asarray(passages, np.float64)), _unit(np.asarray(queries, np.float64))


def bm25(of_titles: list[str], of_queries: list[str]) -> Array:
    """(queries, titles) by BM25 over stemmed terms, k1 1.2, b 0.75."""
    analyser = Analyser(language="english")
    counts = [Counter(terms(title, analyser)) for title in of_titles]
    lengths = np.array([sum(count.values()) for count in counts], float)
    norm = 1.2 * (0.25 + 0.75 * lengths / lengths.mean())
    postings: dict[str, list[tuple[int, int]]] = {}
    for place, count in enumerate(counts):
        for term, times in count.items():
            postings.setdefault(term, []).append((place, times))
    scores = np.zeros((len(of_queries), len(of_titles)))
    for row, asked in enumerate(of_queries):
        for term in set(terms(asked, analyser)) & set(postings):
            places, times = (np.array(side) for side in zip(*postings[term], strict=True))
            worth = np.log(1 + (len(of_titles) - len(places) + 0.5) / (len(places) + 0.5))
            scores[row, places] += worth * times * 2.2 / (times + norm[places])
    return scores


def general(relevance: Array, price: Array, sold: Array, age_days: Array, policy: Policy) -> tuple[Array, Array]:
    """Band, and the sum of the weighted terms, of a query's candidates: `features.ranking.ranked` for items of one
    category and currency that are all there and not rated."""
    weights, total = policy.weights, sum(policy.weights.model_dump().values())
    cheap = np.full(len(price), 0.5)
    if len(price) > 1 and price.min() != price.max():
        cheap = 1.0 - (rankdata(price, method="min") - 1) / (len(price) - 1)
    fresh = np.zeros(len(price))
    for limit, value in sorted(policy.freshness.items(), reverse=True):
        fresh = np.where(age_days <= limit, value, fresh)
    values = {"relevance": relevance, "price": cheap, "freshness": fresh,
              "sold": np.minimum(1.0, np.log1p(sold) / np.log1p(policy.sold_cap)),
              "rating": np.full(len(price), (policy.rating_prior - 1.0) / 4.0)}  # fmt: skip
    within = sum(np.round(value * (getattr(weights, name) / total), SCORE_DECIMALS) for name, value in values.items())
    return np.searchsorted(np.array(policy.bands), relevance, side="right").astype(float), np.asarray(within)


def ask(lines: pd.DataFrame, held_out: pd.Series, heads: pd.Series, shop: "Shop") -> Asked:
    """The queries of held-out baskets (invoice by customer), in the order of time, each from what was before it."""
    count = len(shop.codes)
    sold, price, first = np.zeros(count), np.full(count, np.nan), np.full(count, np.datetime64("NaT", "us"))
    place = {code: n for n, code in enumerate(shop.codes)}
    lines = lines.assign(item=lines["code"].map(place))
    of_customer = dict(list(lines[lines["customer"].notna()].groupby("customer")))
    in_order = lines[lines["invoice"].isin(set(held_out))].groupby("invoice")["at"].min()
    customers = {invoice: customer for customer, invoice in held_out.items()}
    rows: list[dict[str, Any]] = []
    done, times = 0, lines["at"].to_numpy()
    item, units, prices = (lines[name].to_numpy() for name in ("item", "units", "price"))
    for invoice, at in in_order.sort_values(kind="stable").items():
        until = int(np.searchsorted(times, np.datetime64(at), side="left"))  # what was before the invoice
        new = slice(done, until)
        np.add.at(sold, item[new], units[new])
        price[item[new]] = prices[new]  # the last one asked
        unseen = np.isnat(first[item[new]])
        np.minimum.at(first, item[new][unseen], np.datetime64("2100-01-01", "us"))
        first[item[new]] = np.where(
            first[item[new]] > times[new].astype("M8[us]"), times[new].astype("M8[us]"), first[item[new]]
        )
        done = until
        own = of_customer[customers[invoice]]
        past, bought = own[own["at"] < at], own[own["invoice"] == invoice]
        if past.empty:
            continue
        seen = past.groupby(["invoice", "item"], as_index=False).agg(at=("at", "min"), price=("price", "last"))
        days = (at - seen["at"]).dt.total_seconds().to_numpy() / 86_400
        recency = 0.5 ** (days / HALF_LIFE_DAYS)
        profile = _unit(recency @ shop.items[seen["item"].to_numpy()])
        last = seen[seen["invoice"] == past.iloc[-1]["invoice"]]["item"].to_numpy()
        session = _unit(shop.items[last].mean(axis=0))
        shares = np.bincount(_band(seen["price"].to_numpy()), weights=recency, minlength=len(PRICE_BANDS) + 1)
        shares = shares / shares.sum()
        known, before = ~np.isnan(price), set(past["item"])
        for code in sorted(bought["code"].unique()):
            wanted, words = place[code], heads[code]
            if not words or not known[wanted]:
                continue
            query = shop.queries[words]
            lexical = np.where(known, shop.lexical[query], 0.0)
            best = np.argsort(-lexical, kind="stable")[:CANDIDATES]
            best = np.sort(best[lexical[best] > 0])
            cosine = np.clip(shop.items[best] @ shop.asked[query], 0.0, 1.0)
            relevance = np.round(0.5 * lexical[best] / lexical[best].max() + 0.5 * cosine, SCORE_DECIMALS)
            age = (np.datetime64(at) - first[best]) / np.timedelta64(1, "D")
            band, within = general(relevance, price[best], sold[best], age, shop.policy)
            where = np.flatnonzero(best == wanted)
            rows.append({
                "customer": customers[invoice], "is_new": wanted not in before, "target": where[0] if len(where) else -1,
                "tier": _padded(band, -np.inf), "within": _padded(within), "price": _padded(shares[_band(price[best])]),
                "profile": _padded(np.round(shop.items[best] @ profile, SCORE_DECIMALS)),
                "session": _padded(np.round(shop.items[best] @ session, SCORE_DECIMALS)),
            })  # fmt: skip
    return Asked(**{name: np.array([row[name] for row in rows]) for name in rows[0]})


@dataclass(frozen=True)
class Shop:
    """The items, in the order of their codes, with unit vectors; the queries with theirs, and BM25's scores of both."""

    codes: list[str]
    items: Array
    queries: dict[str, int]
    asked: Array
    lexical: Array
    policy: Policy


def figures(folder: Path) -> Iterator[tuple[str, float, str]]:
    """Everything on the last baskets is read once, after the weights were chosen on the baskets before them."""
    lines, shop_titles = purchases(), titles()
    baskets = lines[lines["customer"].notna()].groupby(["customer", "invoice"])["at"].min().reset_index()
    baskets = baskets.sort_values(["customer", "at", "invoice"])
    back = baskets.groupby("customer").cumcount(ascending=False)
    size = baskets.groupby("customer")["invoice"].transform("size")
    last, before = (baskets[(back == n) & (size >= n + 2)].set_index("customer")["invoice"] for n in (0, 1))
    queries = {how: generated(how, shop_titles) for how in ("head", "kind")}
    texts = sorted({text for of in queries.values() for text in of} - {""})
    name, items, asked = vectors(folder, list(shop_titles), texts)
    lexical = bm25(list(shop_titles), texts)
    places = {text: n for n, text in enumerate(texts)}
    shop = Shop(list(shop_titles.index), items, places, asked, lexical, Policy())
    for how, heads in queries.items():
        weights = chosen(ask(lines, before, heads, shop))
        said, must = f"personal ranking, generated queries ({how}), {name}", "> 0" if how == "head" else ""
        yield from _measured(said, ask(lines, last, heads, shop), weights, must)


def chosen(asked: Asked) -> Weights:
    """The weights of the grid with the best MRR, the smallest of equals."""
    tried = [Weights(**dict(zip(GRID, values, strict=True))) for values in product(*GRID.values())]
    return max(tried, key=lambda w: (round(float(asked.by_customer(asked.reciprocal_ranks(w)).mean()), 6), -w.total))


def _measured(name: str, asked: Asked, weights: Weights, must: str) -> Iterator[tuple[str, float, str]]:
    none = Weights(profile=0.0, session=0.0, price=0.0)
    general_rr, personal_rr = asked.reciprocal_ranks(none), asked.reciprocal_ranks(weights)
    yield f"{name}: queries", float(len(asked.customer)), ""
    yield f"{name}: customers", float(len(set(asked.customer))), ""
    for term in GRID:
        yield f"{name}: weight of {term}, chosen on the baskets before", getattr(weights, term), ""
    yield f"{name}: MRR of the general ranking", float(asked.by_customer(general_rr).mean()), ""
    yield f"{name}: MRR of the personal ranking", float(asked.by_customer(personal_rr).mean()), ""
    difference = _interval(asked.by_customer(personal_rr - general_rr))
    yield f"{name}: personal less general", difference.mean, must
    yield f"{name}: lower end of its interval", difference.low, must
    yield f"{name}: upper end", difference.high, ""
    for said, among in (("new to the customer", asked.is_new), ("bought before", ~asked.is_new)):
        part = _interval(asked.by_customer(personal_rr - general_rr, among))
        yield f"{name}: the same, items {said}: share of queries", float(among.mean()), ""
        yield f"{name}: the same, items {said}", part.mean, ""
        yield f"{name}: the same, items {said}: lower end", part.low, ""
        yield f"{name}: the same, items {said}: upper end", part.high, ""
    for term in GRID:
        alone = Weights(**{**dict.fromkeys(GRID, 0.0), term: getattr(weights, term)})
        part = _interval(asked.by_customer(asked.reciprocal_ranks(alone) - general_rr))
        yield f"{name}: {term} term alone less general", part.mean, ""
        yield f"{name}: {term} term alone: lower end", part.low, ""
    was, now, is_there = asked.ranks(none), asked.ranks(weights), np.isfinite(asked.tier)
    yield f"{name}: mean places that an item moves", float(np.abs(now - was)[is_there].mean()), ""
    in_top = is_there & (now <= 10)
    yield f"{name}: share of the first ten that came in", float((was > 10)[in_top].mean()), ""


def _interval(of: pd.Series) -> Interval:
    return bootstrap(list(of), RESAMPLES, SEED)


def _unit(of: Array) -> Array:
    norm = np.linalg.norm(of, axis=-1, keepdims=True)
    return of / np.where(norm == 0, 1.0, norm)


def _band(price: Array) -> Array:
    """The place of a price's band, as `features.profiles.price_band`: an edge belongs to the band that it opens."""
    return np.searchsorted(np.array(PRICE_BANDS), price, side="right")


def _padded(of: Array, filling: float = 0.0) -> Array:
    return np.concatenate([of, np.full(CANDIDATES - len(of), filling)]).astype(np.float64)


if __name__ == "__main__":
    for figure, value, must in figures(Path("/tmp/ecomspark-figures")):
        print(json.dumps({"figure": figure, "value": round(value, 6), "must": must}), flush=True)
