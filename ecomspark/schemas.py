"""Every table: what one row is, its columns with a sentence each, its key, its kind, its layout. Declared once, here.

A column is not null unless its sentence says what null means. Pure declarations: `tables/` makes them real.

Three kinds. **state**: the truth at a version, merged by key, only rows that differ. **memory**: what Python made of
content, appended and content-addressed; a row depends on nothing but the digests in its key, so it is never stale,
and two rows of one key say the same; it goes when nothing has referred to it for long (`maintain`). **log**: what
happened, appended where its key is not there yet.
"""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["state", "memory", "log"]


@dataclass(frozen=True)
class Column:
    """One column. `type` in Spark's words. Of two rows of a state table that are alike in all other compared columns,
    one differs in this column when `difference` says so: `value` (null-safe unequal), `keys` (of a map: its keys, not
    its values), `never` (who changed it last, what is only kept for reading), or a number ε (by more than that)."""

    name: str
    type: str
    meaning: str
    is_nullable: bool = False
    difference: Literal["value", "keys", "never"] | float = "value"


@dataclass(frozen=True)
class Table:
    """One table. `bucketed_by`: the digest column whose first byte decides a row's part, for large tables only."""

    name: str
    one_row: str
    kind: Kind
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    bytes_a_row: int
    bucketed_by: str | None = None
    statistics: tuple[str, ...] = field(default=())

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def column(
    name: str,
    type: str,
    meaning: str,
    *,
    null: str = "",
    difference: Literal["value", "keys", "never"] | float = "value",
) -> Column:
    """A column; `null` says what null means, and a column without it is never null."""
    return Column(name, type, f"{meaning}; null: {null}" if null else meaning, bool(null), difference)


_DIGEST = "binary"
_TERM = 1e-6  # terms and final scores are rounded to this step before they are compared or ordered

CHANGED_BY = column("changed_by", "string", "run_id that last changed the row", difference="never")

ITEMS = Table(
    "items",
    one_row="one sellable thing as the shop describes it now",
    kind="state",
    key=("item_id",),
    columns=(
        column("item_id", "string", "the shop's own id, unchanged"),
        column("locale", "string", "market and language, such as uk, us, jp"),
        column("title", "string", "title as the source has it, valid UTF-8, without control characters"),
        column("brand", "string", "brand name", null="none stated"),
        column("category", "string", "category, path parts joined by ' > '", null="none stated"),
        column("description", "string", "long text, HTML allowed", null="none"),
        column("attributes", "map<string,string>", "name to value, such as colour to red", null="none"),
        column("price", "decimal(18,4)", "price of one, in `currency`", null="not known"),
        column("currency", "string", "ISO 4217 code of `price`", null="not known"),
        column(
            "sold_count", "bigint", "units sold less units returned, over the source's whole span", null="not known"
        ),
        column("rating", "double", "mean stars, 1 to 5", null="not rated"),
        column("rating_count", "bigint", "how many ratings the mean is of", null="not known"),
        column("is_in_stock", "boolean", "can be bought now", null="not known, and then taken as available"),
        column("listed_at", "timestamp", "when the item was first offered, UTC", null="not known"),
        column("source_digest", _DIGEST, "digest of the fields that a model may read, as the source has them"),
        CHANGED_BY,
    ),
    bytes_a_row=400,
    statistics=("item_id", "locale", "price", "sold_count", "listed_at"),
)

QUERY_ALIASES = Table(
    "query_aliases",
    one_row="a query as its source had it",
    kind="state",
    key=("source", "source_query_id"),
    columns=(
        column("source", "string", "where the query was seen, such as a log or a judgment set"),
        column("source_query_id", "string", "the source's own id of the query"),
        column("locale", "string", "market and language"),
        column("query_text", "string", "what was typed, valid UTF-8, without control characters"),
        column("text_source_digest", _DIGEST, "digest of `query_text`, under which `texts` knows it"),
        column("traffic", "bigint", "how often it was asked over the source's span", null="not known, counted as 0"),
        CHANGED_BY,
    ),
    bytes_a_row=120,
    statistics=("source", "locale", "traffic"),
)

QUERIES = Table(
    "queries",
    one_row="one distinct query of a locale; what normalises alike under identity recipe 1 is one query",
    kind="state",
    key=("query_id",),
    columns=(
        column("query_id", _DIGEST, "digest of locale and normalised text"),
        column("locale", "string", "market and language"),
        column("query_text", "string", "the query under identity recipe 1, which never changes"),
        column("text_source_digest", _DIGEST, "digest of `query_text`, under which `texts` and `terms` know it"),
        column("traffic", "bigint", "sum over the query's aliases"),
        CHANGED_BY,
    ),
    bytes_a_row=100,
    statistics=("locale", "traffic"),
)

JUDGMENT_ALIASES = Table(
    "judgment_aliases",
    one_row="a judgment as its source had it, before its query is known by query_id",
    kind="state",
    key=("judgment_set", "source_query_id", "item_id"),
    columns=(
        column("judgment_set", "string", "judgments that share one scale and source"),
        column("source", "string", "the `source` of the query's alias"),
        column("source_query_id", "string", "the source's own id of the query"),
        column("item_id", "string", "the judged item"),
        column("grade", "double", "ordinal, higher is better; a mean of several judges lies between whole grades"),
        CHANGED_BY,
    ),
    bytes_a_row=80,
    statistics=("judgment_set", "source", "grade"),
)

JUDGMENTS = Table(
    "judgments",
    one_row="an assessor's grade of (query, item)",
    kind="state",
    key=("judgment_set", "query_id", "item_id"),
    columns=(
        column("judgment_set", "string", "judgments that share one scale and source"),
        column("query_id", _DIGEST, "the judged query"),
        column("item_id", "string", "the judged item"),
        column("grade", "double", "ordinal, higher is better; a mean of several judges lies between whole grades"),
        CHANGED_BY,
    ),
    bytes_a_row=60,
    statistics=("judgment_set", "grade"),
)

SPLITS = Table(
    "splits",
    one_row="which side a query is on, for a named split",
    kind="state",
    key=("split", "query_id"),
    columns=(
        column("split", "string", "name of the split"),
        column("query_id", _DIGEST, "the query"),
        column("side", "string", "train, validation or test"),
        CHANGED_BY,
    ),
    bytes_a_row=50,
    statistics=("split", "side"),
)

INTERACTIONS = Table(
    "interactions",
    one_row="one thing a shopper did",
    kind="log",
    key=("interaction_id",),
    columns=(
        column("interaction_id", "string", "the source's id of it, or one made of what identifies it there"),
        column("kind", "string", "impression, click, cart, favourite, purchase, return or review"),
        column("item_id", "string", "the item it was done to"),
        column("occurred_at", "timestamp", "when, UTC"),
        column(
            "shopper_id",
            "string",
            "pseudonym of who did it, made at import: the id of the key, a hyphen, 128 bits of HMAC-SHA-256 in hex",
            null="not known",
        ),
        column("source", "string", "`source` of the query's alias", null="no query is known"),
        column("source_query_id", "string", "the query that led to it", null="not known"),
        column("position", "int", "1-based place at which the item was shown", null="not known"),
        column("quantity", "bigint", "units, more than 0 also for a return", null="does not apply"),
        column("price", "decimal(18,4)", "price of one", null="does not apply or not known"),
        column("currency", "string", "ISO 4217 code of `price`", null="not known"),
        column("basket_id", "string", "what was bought together", null="not known"),
        column("rating", "double", "stars of a review, 1 to 5", null="no review"),
        column("dwell_seconds", "double", "time spent", null="not measured"),
    ),
    bytes_a_row=70,
    statistics=("kind", "occurred_at"),
)

CANDIDATES = Table(
    "candidates",
    one_row="an item proposed for a query before scoring",
    kind="state",
    key=("query_id", "item_id"),
    columns=(
        column("query_id", _DIGEST, "the query"),
        column("item_id", "string", "the proposed item"),
        column(
            "sources",
            "map<string,double>",
            "who proposed it, with the source's own score when it first did",
            difference="keys",
        ),
        CHANGED_BY,
    ),
    bytes_a_row=50,
    bucketed_by="query_id",
)

COLLECTION_STATISTICS = Table(
    "collection_statistics",
    one_row="what BM25 knows of a locale's items, by version; under the empty term, of all of them",
    kind="state",
    key=("statistics_version", "locale", "term"),
    columns=(
        column("statistics_version", "int", "raised on request; the settings name the version that scores"),
        column("locale", "string", "market and language"),
        column("term", "string", "a term as `text.terms` makes it; empty: all items"),
        column("item_count", "bigint", "items with the term in any searched field; under the empty term, all items"),
        column(
            "average_lengths",
            "map<string,double>",
            "mean count of terms by field",
            null="given under the empty term only",
        ),
        CHANGED_BY,
    ),
    bytes_a_row=40,
    statistics=("statistics_version", "locale", "item_count"),
)

TEXTS = Table(
    "texts",
    one_row="what a recipe makes of a source: the text that a model reads",
    kind="memory",
    key=("source_digest", "role", "recipe_digest"),
    columns=(
        column("source_digest", _DIGEST, "digest of the source's fields"),
        column("role", "string", "query or passage"),
        column("recipe_digest", _DIGEST, "digest of the recipe with all its settings"),
        column("text", "string", "the text"),
        column("text_digest", _DIGEST, "digest of `text`, under which `scores` and `embeddings` know it"),
        column("cut_characters", "bigint", "characters that the recipe's caps took off"),
    ),
    bytes_a_row=350,
    bucketed_by="source_digest",
)

TERMS = Table(
    "terms",
    one_row="what an analyser makes of a field: its terms",
    kind="memory",
    key=("field_text_digest", "analyser_digest"),
    columns=(
        column("field_text_digest", _DIGEST, "digest of the field's text as the source has it"),
        column("analyser_digest", _DIGEST, "digest of the analyser with all its settings"),
        column("terms", "array<string>", "terms in order, repetitions kept"),
    ),
    bytes_a_row=120,
    bucketed_by="field_text_digest",
)

SCORES = Table(
    "scores",
    one_row="what a scorer said of a query's and an item's text, or the error that it met",
    kind="memory",
    key=("query_digest", "passage_digest", "scorer_digest", "attempt"),
    columns=(
        column("query_digest", _DIGEST, "text_digest of the query"),
        column("passage_digest", _DIGEST, "text_digest of the passage"),
        column("scorer_digest", _DIGEST, "digest of all that decides the logit"),
        column("attempt", "int", "1 for the first try"),
        column("logit", "double", "the model's raw number, fp32, before any activation", null="the pair met an error"),
        column("activation", "double", "logit through the head's activation, 0 to 1", null="the pair met an error"),
        column("token_count", "int", "tokens read, special ones included", null="the pair met an error"),
        column(
            "cut_query_tokens",
            "int",
            "tokens of the query that its cap took off (of the part read: 32 characters a token of the cap)",
            null="the pair met an error",
        ),
        column(
            "cut_passage_tokens",
            "int",
            "tokens of the passage cut, of the part read likewise",
            null="the pair met an error",
        ),
        column("error", "string", "class of the error; never its message", null="there is a logit"),
        column("error_kind", "string", "passing (may heal) or lasting", null="there is a logit"),
    ),
    bytes_a_row=70,
    bucketed_by="query_digest",
)

EMBEDDINGS = Table(
    "embeddings",
    one_row="the vector that an encoder gives a text in a role",
    kind="memory",
    key=("text_digest", "role", "scorer_digest"),
    columns=(
        column("text_digest", _DIGEST, "text_digest of the text"),
        column("role", "string", "query, passage or symmetric"),
        column("scorer_digest", _DIGEST, "digest of all that decides the vector"),
        column(
            "vector",
            "array<float>",
            "unit length; of a scorer with int8 vectors whole numbers from -127 to 127, whose length means nothing",
        ),
    ),
    bytes_a_row=1_600,
    bucketed_by="text_digest",
)

RANKINGS = Table(
    "rankings",
    one_row="what search should show for a query now, under a policy: an item, its rank and every term of its score",
    kind="state",
    key=("variant", "query_id", "item_id"),
    columns=(
        column("variant", "string", "name of the policy"),
        column("query_id", _DIGEST, "the query"),
        column("item_id", "string", "the item"),
        column("rank", "int", "1 is best; no gaps, no ties: equal scores are ordered by item_id"),
        column(
            "final_score",
            "double",
            "availability + band + the sum of the weighted terms below; higher is better, falls with rank",
            difference=_TERM,
        ),
        column(
            "availability",
            "double",
            "0 when available or not known, minus the count of bands when out of stock",
            difference=_TERM,
        ),
        column("band", "int", "band of relevance, 0 is the lowest; other terms reorder only within it"),
        column("relevance", "double", "expected gain, 0 to 1: the logit, calibrated", difference=_TERM),
        column("relevance_term", "double", "weight x relevance; absolute; higher is better", difference=_TERM),
        column(
            "price_term",
            "double",
            "weight x (1 - percent rank of price among the query's candidates of one category and currency); "
            "within-query; cheaper is better; 0.5 where price is not known or nothing compares",
            difference=_TERM,
        ),
        column(
            "sold_term",
            "double",
            "weight x min(1, ln(1 + sold_count) / ln(1 + sold_cap)); absolute; more is better; 0 where not known",
            difference=_TERM,
        ),
        column(
            "rating_term",
            "double",
            "weight x (shrunk mean - 1) / 4, shrunk = (rating x n + prior x m) / (n + m); absolute; higher is better; "
            "the prior where not rated",
            difference=_TERM,
        ),
        column(
            "freshness_term",
            "double",
            "weight x the step for the days from listed_at to as_of; absolute; newer is better; 0 where not known",
            difference=_TERM,
        ),
        column("logit", "double", "the model's raw number", difference=1e-4),
        column("query_digest", _DIGEST, "text_digest of the scored query"),
        column("passage_digest", _DIGEST, "text_digest of the scored passage"),
        column("scorer_digest", _DIGEST, "which scorer; one per query and variant"),
        column("calibration_digest", _DIGEST, "which calibration"),
        column("settings_digest", _DIGEST, "which policy settings"),
        CHANGED_BY,
    ),
    bytes_a_row=200,
    bucketed_by="query_id",
)

CONSENTS = Table(
    "consents",
    one_row="what a shopper said of a purpose at one time; the newest row holds, and of two at once the no",
    kind="log",
    # What was said has a part in the key: a no of the time of a yes that is there must land beside it.
    key=("shopper_id", "purpose", "at", "is_given"),
    columns=(
        column("shopper_id", "string", "pseudonym, as in `interactions`"),
        column("purpose", "string", "what for, such as personalisation"),
        column("at", "timestamp", "when it was said, UTC; what an importer declared: the beginning of 1970"),
        column("is_given", "boolean", "whether it was a yes"),
        column("basis", "string", "the legal basis, in words", null="none stated"),
    ),
    bytes_a_row=80,
    statistics=("purpose", "at"),
)

SHOPPER_LINKS = Table(
    "shopper_links",
    one_row="two ids that are one shopper: one profile is derived from both histories, under the first id",
    kind="log",
    key=("shopper_id", "other_id", "at"),
    columns=(
        column("shopper_id", "string", "pseudonym that stays"),
        column("other_id", "string", "pseudonym that retires"),
        column("at", "timestamp", "when it became known, UTC"),
    ),
    bytes_a_row=90,
    statistics=("at",),
)

SESSIONS = Table(
    "sessions",
    one_row="interactions of one shopper with no gap over the declared length",
    kind="state",
    key=("session_id",),
    columns=(
        column("session_id", _DIGEST, "digest of the shopper and the session's first interaction"),
        column("shopper_id", "string", "pseudonym; of linked ids the one that stays"),
        column("session_date", "date", "the day on which it began, in the declared time zone"),
        column("started_at", "timestamp", "time of its first interaction, UTC"),
        column("ended_at", "timestamp", "time of its last, UTC"),
        column("interaction_count", "int", "interactions in it"),
        column("purchase_count", "int", "purchases among them"),
        column("item_ids", "array<string>", "the items in order of time, then of interaction_id"),
        column("kinds", "array<string>", "what was done to each"),
        column("bot_rule", "string", "the rule by which it is taken for a machine's", null="no rule holds"),
        column("settings_digest", _DIGEST, "which rules"),
        CHANGED_BY,
    ),
    bytes_a_row=400,
    statistics=("session_date", "interaction_count"),
)

PROFILES = Table(
    "profiles",
    one_row="what a shopper's behaviour until the end of a day says of them; it stands until a newer one of theirs",
    kind="state",
    key=("shopper_id", "as_of_date"),
    columns=(
        column("shopper_id", "string", "pseudonym; of linked ids the one that stays"),
        column("as_of_date", "date", "made from nothing later than this day, in the declared time zone"),
        column("history_digest", _DIGEST, "digest of the interactions that it was made from, in order"),
        column("linked_count", "int", "ids whose history is in it"),
        column("interaction_count", "bigint", "interactions of any kind"),
        column("purchase_count", "bigint", "lines bought"),
        column("return_count", "bigint", "lines returned"),
        column("basket_count", "bigint", "baskets bought"),
        column("active_days", "int", "days with an interaction"),
        column("first_at", "timestamp", "time of the first interaction, UTC"),
        column("last_at", "timestamp", "time of the last, UTC"),
        column("days_between_baskets", "double", "mean", null="fewer than two baskets"),
        column("basket_items", "double", "mean of distinct items a basket", null="no basket"),
        column("basket_value", "double", "mean, in the currency most of them have", null="no basket, or no prices"),
        column("return_share", "double", "lines returned of lines bought, 1 at most", null="nothing bought"),
        column(
            "repeat_share", "double", "lines bought of an item that was in an earlier basket", null="nothing bought"
        ),
        column("browse_seconds", "double", "time spent, in sum", null="not logged"),
        column("review_count", "bigint", "reviews"),
        column("review_tone", "double", "mean of (stars - 3) / 2, -1 to 1", null="no review"),
        column("category_weights", "map<string,double>", "share of recency-weighted behaviour by category"),
        column("brand_weights", "map<string,double>", "the same by brand"),
        column("price_band_weights", "map<string,double>", "the same by price band, such as 2-5"),
        column("interests", "array<string>", "in words, the strongest first"),
        column("vector", "array<float>", "recency-weighted item embeddings, unit length", null="no item has one"),
        column("encoder_digest", _DIGEST, "scorer_digest of the embeddings", null="no vector"),
        column(
            "sequence_state", "array<float>", "state of the sequence model after the history", null="none asked for"
        ),
        column("sequence_scorer_digest", _DIGEST, "which sequence model", null="no state"),
        column("settings_digest", _DIGEST, "which settings"),
        CHANGED_BY,
    ),
    bytes_a_row=3_000,
    statistics=("as_of_date", "interaction_count"),
)

SEQUENCE_STATES = Table(
    "sequence_states",
    one_row="the state that a sequence model is in after a history of items",
    kind="memory",
    key=("history_digest", "scorer_digest"),
    columns=(
        column("history_digest", _DIGEST, "digest of the items, in order, as the model reads them"),
        column("scorer_digest", _DIGEST, "digest of all that decides the state"),
        column("vector", "array<float>", "the state; its length means nothing"),
        column("item_count", "int", "items read"),
    ),
    bytes_a_row=600,
    bucketed_by="history_digest",
)

NEXT_ITEMS = Table(
    "next_items",
    one_row="an item that a shopper is likely to want next, as of a day",
    kind="state",
    key=("shopper_id", "as_of_date", "rank"),
    columns=(
        column("shopper_id", "string", "pseudonym; of linked ids the one that stays"),
        column("as_of_date", "date", "made from nothing later than this day"),
        column("rank", "int", "1 is the likeliest; no gaps"),
        column("item_id", "string", "the item"),
        column("score", "double", "the model's number, higher is likelier", difference=1e-4),
        column("confidence", "double", "calibrated chance that the next item is this one", difference=_TERM),
        column("list_confidence", "double", "calibrated chance that it is one of the list", difference=_TERM),
        column("history_digest", _DIGEST, "the history, as `sequence_states` knows it"),
        column("scorer_digest", _DIGEST, "which sequence model"),
        column(
            "item_set_digest",
            _DIGEST,
            "digest of the ids of the items that could be proposed, of new ones with their text",
        ),
        CHANGED_BY,
    ),
    bytes_a_row=150,
    statistics=("as_of_date", "rank"),
)

OUTLOOKS = Table(
    "outlooks",
    one_row="what a shopper is likely to do, and how far the last sessions lie from the profile, as of a day",
    kind="state",
    key=("shopper_id", "as_of_date"),
    columns=(
        column("shopper_id", "string", "pseudonym; of linked ids the one that stays"),
        column("as_of_date", "date", "made from nothing later than this day"),
        column(
            "session_purchase_chance",
            "double",
            "chance that the last session goes on to a purchase",
            null="no session model, or the session was over by the end of the day",
            difference=_TERM,
        ),
        column(
            "purchase_chance",
            "double",
            "chance of a purchase within the declared days",
            null="no such model",
            difference=_TERM,
        ),
        column(
            "return_chance",
            "double",
            "chance of a return within the declared days",
            null="no such model",
            difference=_TERM,
        ),
        column(
            "drift",
            "double",
            "1 less the cosine of the last sessions' mean vector and the profile's before them, 0 to 2, without what "
            "sessions differ by among themselves",
            null="too few sessions with vectors, or they have no direction in common",
            difference=_TERM,
        ),
        column(
            "drift_low", "double", "lower end of its 95 % interval over sessions", null="as drift", difference=_TERM
        ),
        column("drift_high", "double", "upper end", null="as drift", difference=_TERM),
        column("history_digest", _DIGEST, "digest of the interactions that it was made from, in order"),
        column("scorer_digest", _DIGEST, "which models the chances are of", null="no chances"),
        column("settings_digest", _DIGEST, "which settings"),
        CHANGED_BY,
    ),
    bytes_a_row=200,
    statistics=("as_of_date",),
)

PERSONAL_RANKINGS = Table(
    "personal_rankings",
    one_row="an item's place in a query's ranking for one shopper or segment",
    kind="state",
    key=("variant", "audience_kind", "audience", "query_id", "item_id"),
    columns=(
        column("variant", "string", "the variant of `rankings` that it follows"),
        column("audience_kind", "string", "shopper or segment"),
        column("audience", "string", "the shopper's pseudonym, or the segment's name"),
        column("query_id", _DIGEST, "the query"),
        column("item_id", "string", "the item"),
        column("rank", "int", "1 is best; no gaps, no ties"),
        column("general_rank", "int", "its rank for everybody"),
        column(
            "final_score",
            "double",
            "availability + band + (the general terms + the sum of the personal terms below) / (1 + their weights)",
            difference=_TERM,
        ),
        column("general_score", "double", "its final score for everybody", difference=_TERM),
        column(
            "profile_term",
            "double",
            "weight x (1 + cosine of profile and item) / 2; 0.5 x weight where one has no vector",
            difference=_TERM,
        ),
        column(
            "session_term",
            "double",
            "weight x (1 + cosine of the last session and item) / 2; likewise",
            difference=_TERM,
        ),
        column(
            "price_term",
            "double",
            "weight x share of the profile's behaviour in the item's price band; 0 where not known",
            difference=_TERM,
        ),
        column(
            "is_personal",
            "boolean",
            "false: no profile, exactly the general ranking; without consent there is no row at all",
        ),
        column("rankings_version", "bigint", "version of `rankings` that it follows", difference="never"),
        column("profile_digest", _DIGEST, "history_digest of the profile", null="none, or a segment"),
        column("settings_digest", _DIGEST, "which policy settings"),
        CHANGED_BY,
    ),
    bytes_a_row=220,
    bucketed_by="query_id",
)

UNSERVED_QUERIES = Table(
    "unserved_queries",
    one_row="a query that no source of candidates serves well",
    kind="state",
    key=("query_id",),
    columns=(
        column("query_id", _DIGEST, "the query"),
        column("traffic", "bigint", "how often it was asked"),
        column("reason", "string", "nothing_near: few lexical matches and no near item; or low_recall, where judged"),
        column("lexical_count", "int", "items that BM25 proposed"),
        column("best_cosine", "double", "of the nearest item", null="no embeddings", difference=_TERM),
        column(
            "recall",
            "double",
            "of its judged relevant items, of all sources together",
            null="not judged",
            difference=_TERM,
        ),
        CHANGED_BY,
    ),
    bytes_a_row=80,
    statistics=("reason", "traffic"),
)

QUARANTINE = Table(
    "quarantine",
    one_row="a row that could not be used, and why",
    kind="state",
    key=("table_name", "source_key", "row_digest", "reason"),
    columns=(
        column("table_name", "string", "the table that it was meant for"),
        column("source_key", "string", "its key there, parts joined by '/'; empty where the key itself is missing"),
        column("row_digest", _DIGEST, "digest of the row as mapped"),
        column("reason", "string", "why, one word or two"),
        column("row", "string", "the row as JSON, its first 2,000 characters", difference="never"),
        column("tries", "int", "how often it was set aside: again each time after it was resolved", difference="never"),
        column("resolved_at", "timestamp", "when its key passed", null="not yet"),
        CHANGED_BY,
    ),
    bytes_a_row=500,
    statistics=("table_name", "reason"),
)

RUNS = Table(
    "runs",
    one_row="one execution of one job: opened when it starts, closed when it ends",
    kind="state",
    key=("job", "run_id"),
    columns=(
        column("job", "string", "the pipeline's name"),
        column("run_id", "string", "name that the caller gave"),
        column("target", "string", "the source or judgment set that it publishes", null="the job has no parts"),
        column("status", "string", "planned, open, published, nothing_to_do, or failed"),
        column("as_of", "date", "the day that the run takes for today", null="no input has a date yet"),
        column("started_at", "timestamp", "when it last started"),
        column("ended_at", "timestamp", "when it ended", null="it has not, or it died"),
        column("settings_digest", _DIGEST, "digest of the settings that decide output"),
        column(
            "inputs",
            "map<string,struct<table_id:string,version:bigint>>",
            "state and log tables at pinned versions; memory tables, read at their newest, at the version of then",
        ),
        column("rows", "map<string,bigint>", "counts by what was counted"),
        column("seconds", "map<string,double>", "seconds by stage"),
        column("published", "map<string,struct<before:bigint,after:bigint>>", "table versions before and after"),
        column("error", "string", "class of the error that ended it; never its message", null="none"),
        column("epoch", "bigint", "of its leases: rises with every run of any job", null="it had none"),
        column(
            "covers",
            "map<string,string>",
            "what it brought up to date (a scorer, a variant) to the digest of all that decides it",
            null="the job goes by no changes",
        ),
    ),
    bytes_a_row=900,
    statistics=("job", "run_id", "status", "as_of", "started_at"),
)

LEASES = Table(
    "leases",
    one_row="who may publish to a table now, or was the last that might",
    kind="state",
    key=("table_name",),
    columns=(
        column("table_name", "string", "the table"),
        column("epoch", "bigint", "rises each time that any lease is taken"),
        column("job", "string", "the holder's job"),
        column("run_id", "string", "the holder's run; the lease ends with it, when its row in `runs` is closed"),
        column("nonce", "string", "names one taking; empty: given back before its run was opened"),
        column("expires_at", "timestamp", "from when on others may take it, UTC; put off while the holder lives"),
    ),
    bytes_a_row=150,
    statistics=("table_name",),
)

HOLDS = Table(
    "holds",
    one_row="a stop on publishing a variant, until it is released",
    kind="state",
    key=("table_name", "variant"),
    columns=(
        column("table_name", "string", "the table that is not published to"),
        column("variant", "string", "the variant that is not"),
        column("reason", "string", "why, in a word or two: rollback, or what a person gave"),
        column("set_by", "string", "run_id that set it"),
        column("set_at", "timestamp", "when, UTC"),
    ),
    bytes_a_row=120,
    statistics=("table_name", "variant"),
)

KEPT_BACK = Table(
    "kept_back",
    one_row="a query whose ranking stays as it was because too few of its candidates are scored, or that is shown "
    "without one that has no text yet",
    kind="state",
    key=("variant", "query_id"),
    columns=(
        column("variant", "string", "name of the policy"),
        column("query_id", _DIGEST, "the query"),
        column("expected_count", "int", "candidates that should have a score: all but those with a lasting error"),
        column("scored_count", "int", "those that have one"),
        column("is_kept_back", "boolean", "whether its ranking stays as it was"),
        CHANGED_BY,
    ),
    bytes_a_row=60,
    statistics=("variant",),
)

UNREFERENCED = Table(
    "unreferenced",
    one_row="a row of a memory table that nothing refers to, as maintenance saw it",
    kind="state",
    key=("table_name", "key_digest"),
    columns=(
        column("table_name", "string", "the memory table"),
        column("key_digest", _DIGEST, "digest of the row's key columns, binary ones in hex, as texts"),
        column("since_date", "date", "the day of the maintenance that first saw it so, without a break since"),
        CHANGED_BY,
    ),
    bytes_a_row=40,
    bucketed_by="key_digest",
    statistics=("table_name", "since_date"),
)

RUN_METRICS = Table(
    "run_metrics",
    one_row="one evaluation figure with its count of queries and its interval",
    kind="log",
    key=("job", "run_id", "judgment_set", "ranker", "metric", "slice"),
    columns=(
        column("job", "string", "the evaluating job"),
        column("run_id", "string", "the evaluating run"),
        column("judgment_set", "string", "the judgments"),
        column(
            "ranker",
            "string",
            "whose order: final, model, bm25, cosine, chance or published; embedding or fused; or a checkpoint",
        ),
        column("metric", "string", "such as ndcg@10"),
        column("slice", "string", "which queries: all, or a part of them, such as traffic=head, items=new"),
        column("value", "double", "mean over the queries; of pooled_auc, over their pairs"),
        column("query_count", "int", "queries in the mean"),
        column("omitted_count", "int", "queries left out because nothing judged for them has a gain"),
        column("low", "double", "lower end of the 95 % bootstrap interval of the mean"),
        column("high", "double", "upper end"),
        column(
            "difference",
            "double",
            "the leader's mean less this one's, over the same queries; the leader is the final ranking, of two "
            "checkpoints that are compared the second, of sources of candidates all of them fused",
            null="itself",
        ),
        column("difference_low", "double", "lower end of its paired bootstrap interval", null="itself"),
        column("difference_high", "double", "upper end", null="itself"),
        column(
            "model_difference",
            "double",
            "the model's own order's mean less this one's: what fine-tuning did",
            null="itself, the final ranking, a source of candidates, or a checkpoint that was compared",
        ),
        column("model_difference_low", "double", "lower end of its paired interval", null="as model_difference"),
        column("model_difference_high", "double", "upper end", null="as model_difference"),
    ),
    bytes_a_row=150,
    statistics=("job", "run_id", "judgment_set", "ranker", "metric", "slice"),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        ITEMS, QUERY_ALIASES, QUERIES, JUDGMENT_ALIASES, JUDGMENTS, SPLITS, INTERACTIONS, CANDIDATES,
        COLLECTION_STATISTICS, TEXTS, TERMS, SCORES, EMBEDDINGS, UNREFERENCED, RANKINGS, KEPT_BACK, QUARANTINE,
        CONSENTS, SHOPPER_LINKS, SESSIONS, PROFILES, SEQUENCE_STATES, NEXT_ITEMS, OUTLOOKS, PERSONAL_RANKINGS,
        UNSERVED_QUERIES, RUNS, RUN_METRICS, LEASES, HOLDS,
    )
}  # fmt: skip
