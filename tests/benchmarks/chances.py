"""How good the chances are: of a purchase before a session is over (Taobao), of a purchase and of a return within 30 days
(Online Retail), beside the base rate and the usual rule of recency and frequency.

    make figures OUT=figures.json ONLY=chances

Plain pandas, with the features of `features.chances` (tests/features/test_chances.py holds both against each other) and
the fit of `ecomspark.chances`. Every split is by time, and the test part is read once.

Taobao: two hours of events, sessions by a gap of 30 minutes; every event is an example, its label whether its session
has a purchase behind it. Sessions that began last are tested, and the file ends while some go on: what they would have
bought is not known to anybody. Online Retail: shoppers seen before a cut; the last cut whose 30 days are whole is
2011-10-01, the cuts before it stand 30 days apart, so that no label of training lies in the tested days.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecomspark.chances import Kind, Linear, fit, judged
from ecomspark.metrics import bootstrap

DATA = Path(__file__).parents[3] / "shared" / "data"
TAOBAO, RETAIL = DATA / "taobao_events.parquet", DATA / "online_retail_lines.parquet"
GAP_SECONDS, DAYS, CUTS = 1_800, 30, 7
TEST_CUT = pd.Timestamp("2011-10-01")
KINDS = {"pv": "click", "cart": "cart", "fav": "favourite", "buy": "purchase"}
_SECONDS_A_DAY, _MOST_OVERDUE, _QUANTILES, _RESAMPLES = 86_400.0, 5.0, 5, 1_000


def session_features(events: pd.DataFrame) -> pd.DataFrame:
    """`features.chances.session_features` of (session_id, interaction_id, item_id, kind, seconds_at), with `label` as
    `goes_on` has it."""
    rows = events.sort_values(["session_id", "seconds_at", "interaction_id"], ignore_index=True)
    session = rows["session_id"]
    is_kind = {kind: rows["kind"] == kind for kind in KINDS.values()}
    so_far = {kind: of.groupby(session).cumsum() for kind, of in is_kind.items()}
    item = [session, rows["item_id"]]
    raw = {
        "events": rows.groupby("session_id").cumcount() + 1,
        "items": (~rows.duplicated(["session_id", "item_id"])).groupby(session).cumsum(),
        "clicks": so_far["click"], "carts": so_far["cart"], "favourites": so_far["favourite"],
        "purchases": so_far["purchase"],
        "carts_open": (so_far["cart"] - so_far["purchase"]).clip(lower=0),
        "item_events": rows.groupby(["session_id", "item_id"]).cumcount() + 1,
        "item_carts": is_kind["cart"].groupby(item).cumsum(),
        "seconds": rows["seconds_at"] - rows.groupby("session_id")["seconds_at"].transform("first"),
        "pause": rows.groupby("session_id")["seconds_at"].diff().fillna(0.0),
    }  # fmt: skip
    made = rows.assign(**{name: np.log1p(of.astype(float)) for name, of in raw.items()})
    for kind in ("cart", "favourite", "purchase"):
        made[f"is_{kind}"] = is_kind[kind].astype(float)
    whole = is_kind["purchase"].groupby(session).transform("sum")
    made["label"] = (whole > so_far["purchase"]).astype(int)
    return made


def shopper_features(events: pd.DataFrame, cut: pd.Timestamp) -> pd.DataFrame:
    """`features.chances.shopper_features` of (shopper_id, item_id, kind, basket_id, occurred_at) at a cut, by shopper."""
    days = (cut - events["occurred_at"]).dt.total_seconds() / _SECONDS_A_DAY
    rows = events.assign(days=days)[days > 0]
    bought, returned = rows[rows["kind"] == "purchase"], rows[rows["kind"] == "return"]
    of = rows.groupby("shopper_id")["days"]
    purchases = bought.groupby("shopper_id")
    basket = bought["basket_id"].fillna(bought["occurred_at"].dt.date.astype(str))

    def baskets(within: float) -> pd.Series:
        return basket[bought["days"] <= within].groupby(bought["shopper_id"]).nunique()

    counted = {kind: rows[rows["kind"] == kind].groupby("shopper_id").size() for kind in ("click", "cart", "favourite")}
    raw = pd.DataFrame(
        {
            "days_since_event": of.min(), "days_since_purchase": purchases["days"].min(), "days_known": of.max(),
            "events": of.size(), "events_30": rows[rows["days"] <= 30].groupby("shopper_id").size(),
            "baskets": baskets(np.inf), "baskets_30": baskets(30), "baskets_90": baskets(90), "lines": purchases.size(),
            "items": purchases["item_id"].nunique(), "returns": returned.groupby("shopper_id").size(),
            "returns_90": returned[returned["days"] <= 90].groupby("shopper_id").size(),
            "clicks": counted["click"], "carts": counted["cart"], "favourites": counted["favourite"],
        },
        index=of.min().index,
    )  # fmt: skip
    made = np.log1p(raw.fillna(0.0).astype(float))
    made["has_bought"] = raw["days_since_purchase"].notna().astype(float)
    first = purchases["days"].max().reindex(raw.index)
    between = (first - raw["days_since_purchase"]) / (raw["baskets"] - 1)
    overdue = (raw["days_since_purchase"] / between).where((raw["baskets"] > 1) & (first > raw["days_since_purchase"]))
    made["overdue"] = overdue.clip(upper=_MOST_OVERDUE).fillna(0.0)
    lines = raw["lines"].fillna(0.0)
    returns = raw["returns"].fillna(0.0)
    share = (returns / lines.where(lines > 0)).clip(upper=1.0)
    made["return_share"] = share.where(lines > 0, (returns > 0).astype(float))
    return made


def figures(folder: Path) -> Iterator[tuple[str, float, str]]:
    """(figure, value, must): none is demanded."""
    yield from of_sessions()
    yield from of_shoppers()


def of_sessions() -> Iterator[tuple[str, float, str]]:
    rows = session_features(taobao())
    began = rows.groupby("session_id")["seconds_at"].transform("min")
    edges = began.groupby(rows["session_id"]).first().quantile([0.6, 0.8]).tolist()
    side = np.searchsorted(edges, began.to_numpy(), side="right")
    rows["group"] = rows["session_id"].astype(str)
    train, later, test = (rows[side == number] for number in range(3))
    model = fit(train, later, "session_purchase")
    rule = _rule(train, ["events", "carts_open"])
    yield from _told("purchase in the session, Taobao", model, "session_purchase", train, test, rule)


def of_shoppers() -> Iterator[tuple[str, float, str]]:
    events = online_retail()
    cuts = [TEST_CUT - pd.Timedelta(days=DAYS * back) for back in range(CUTS)]
    at = {cut: shopper_features(events, cut) for cut in cuts}
    kinds: tuple[Kind, ...] = ("purchase", "return")
    for kind in kinds:
        of_cut = [_labelled(rows, events, cut, kind) for cut, rows in at.items()]
        test, later, train = of_cut[0], pd.concat(of_cut[1:3]), pd.concat(of_cut[3:])
        model = fit(train, later, kind)
        rule = _rule(
            train, ["days_since_purchase", "baskets"] if kind == "purchase" else ["days_since_purchase", "returns"]
        )
        yield from _told(f"{kind} within {DAYS} days, Online Retail", model, kind, train, test, rule)


def _labelled(rows: pd.DataFrame, events: pd.DataFrame, cut: pd.Timestamp, kind: str) -> pd.DataFrame:
    is_such = (events["kind"] == kind) & (events["occurred_at"] >= cut)
    did = set(events[is_such & (events["occurred_at"] < cut + pd.Timedelta(days=DAYS))]["shopper_id"])
    group = rows.index.astype(str)
    return rows.assign(label=[int(shopper in did) for shopper in rows.index], group=group)


def _rule(train: pd.DataFrame, names: list[str]) -> Any:
    """What the usual rule says: the rate of the training rows in the same cell of two features' quantiles."""
    edges = {name: np.unique(train[name].quantile(np.arange(1, _QUANTILES) / _QUANTILES)) for name in names}

    def cells(rows: pd.DataFrame) -> pd.Series:
        places = [pd.Series(np.searchsorted(edges[name], rows[name]).astype(str), index=rows.index) for name in names]
        return places[0] + "/" + places[1]

    rates = train["label"].groupby(cells(train)).mean()
    return lambda rows: cells(rows).map(rates).fillna(train["label"].mean()).to_numpy()


def _told(
    name: str, model: Linear, kind: Kind, train: pd.DataFrame, test: pd.DataFrame, rule: Any
) -> Iterator[tuple[str, float, str]]:
    labels, rate = test["label"].to_numpy(dtype=float), float(train["label"].mean())
    said = {"model": model.chances(test), "recency-frequency rule": rule(test), "base rate": np.full(len(test), rate)}
    yield f"{name}: test examples", float(len(test)), ""
    yield f"{name}: rate of the training", rate, ""
    yield f"{name}: rate of the test", float(labels.mean()), ""
    for who, chances in said.items():
        for metric, value in judged(chances, labels, rate).items():
            if metric in ("auc", "brier", "ece"):
                yield f"{name}: {metric} of the {who}", value, ""
    # By group: examples of one session say the same thing many times.
    gain = (said["base rate"] - labels) ** 2 - (said["model"] - labels) ** 2
    of_groups = pd.Series(gain).groupby(test["group"].to_numpy()).mean()
    interval = bootstrap(of_groups.tolist(), _RESAMPLES, seed=7)
    yield f"{name}: Brier, base rate less model, mean of groups", interval.mean, ""
    yield f"{name}: the same, low", interval.low, ""
    yield f"{name}: the same, high", interval.high, ""


def taobao() -> pd.DataFrame:
    """The events in sessions: nothing for 30 minutes ends one."""
    found = pd.read_parquet(TAOBAO)
    rows = pd.DataFrame(
        {"shopper_id": found["shopper_id"], "item_id": found["item_id"], "kind": found["behaviour"].map(KINDS),
         "seconds_at": found["ts"].astype(float), "interaction_id": np.arange(len(found))}
    ).sort_values(["shopper_id", "seconds_at", "interaction_id"], ignore_index=True)  # fmt: skip
    begins = (rows["seconds_at"].diff() > GAP_SECONDS) | (rows["shopper_id"] != rows["shopper_id"].shift())
    return rows.assign(session_id=begins.cumsum())


def online_retail() -> pd.DataFrame:
    """Known customers' purchases and returns of products."""
    found = pd.read_parquet(RETAIL)
    code = found["StockCode"].str.upper().str.strip()
    is_product = code.str.fullmatch(r"\d{5}[A-Z]{0,2}")
    is_return = found["InvoiceNo"].str.startswith("C")
    is_line = is_product & found["CustomerID"].notna() & (is_return | (found["Quantity"] > 0))
    return pd.DataFrame(
        {"shopper_id": found["CustomerID"], "item_id": code, "kind": np.where(is_return, "return", "purchase"),
         "basket_id": found["InvoiceNo"], "occurred_at": found["InvoiceDate"]}
    )[is_line].reset_index(drop=True)  # fmt: skip


if __name__ == "__main__":
    for figure, value, _ in figures(Path()):
        print(f"{figure}: {value:.4g}", flush=True)
