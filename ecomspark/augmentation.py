"""More from the same judgments: training pairs whose texts are changed as shoppers and shops would write them.

Pure functions of a text and of draws that are named, not counted: every draw is a digest of seed, epoch, the pair's own
content and what is drawn. So a pair is changed alike wherever it stands among the others, in whichever process, and
switching one kind of change on leaves the draws of the others as they were. Grades are never touched: each change is
one that a grade should outlive. That is not so of all of them: a query that lost a word may ask for more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import regex
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecomspark.sizes import respelled, sizes
from ecomspark.text import digest

FIELD_SEPARATOR = " | "  # as `text.passage` joins an item's fields
TYPO_MIN_LETTERS = 4
DROP_MIN_TOKENS = 3

_TOKENS = regex.compile(r"\S+")
_DIGIT = regex.compile(r"\p{N}")
# Scripts that are typed letter by letter; what a slip of an input method does to the others is not modelled.
_WORDS = regex.compile(rf"[\p{{Latin}}\p{{Greek}}\p{{Cyrillic}}]{{{TYPO_MIN_LETTERS},}}")
# What follows one of these is what the query does not want: neither of the two may go alone, so neither goes.
_NEGATIONS = frozenset({"no", "non", "not", "without", "w/o", "except", "sin", "ohne", "sans"})
_KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

Share = Annotated[float, Field(ge=0, le=1)]


class Augmentation(BaseModel):
    """How often the texts of training pairs are changed, anew in each epoch. All off by default.

    A share is of the pairs that can have the change: a query without a size has no other spelling of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    typos: Share = Field(
        default=0.0,
        description="share of the training pairs whose query gets a typo: letters swapped, lost, doubled, mistyped",
    )
    token_drop: Share = Field(
        default=0.0,
        description="share of the training pairs whose query of three words or more loses one, never of a size",
    )
    synonyms: Share = Field(
        default=0.0, description="share of the training pairs whose query has a word replaced as `synonyms_of` says"
    )
    synonyms_of: dict[str, list[str]] = Field(
        default={},
        description="what may stand for a word or phrase, in that direction only, such as couch: [sofa, settee]",
    )
    units: Share = Field(
        default=0.0,
        description="share of the training pairs whose query spells a size another way: 8 ft, 8ft, 8 feet; 2x4",
    )
    field_drop: Share = Field(
        default=0.0,
        description="share of the training pairs whose passage loses a field, never the first, which is the title",
    )

    @model_validator(mode="after")
    def _synonyms_to_use(self) -> "Augmentation":
        if self.synonyms and not self.synonyms_of:
            raise ValueError("synonyms is above 0 but synonyms_of names none")
        for phrase, others in self.synonyms_of.items():
            if not phrase.strip() or not others or not all(map(str.strip, others)) or phrase in others:
                raise ValueError("synonyms_of: each phrase needs at least one other, none empty, none itself")
        return self


@dataclass(frozen=True)
class Draws:
    """Draws by name: the same name gives the same draw, and no draw moves another."""

    key: str

    def share(self, name: str) -> float:
        """Uniform from 0 to below 1."""
        return int.from_bytes(digest(self.key, name)[:6]) / 2**48

    def below(self, name: str, count: int) -> int:
        """Uniform whole number from 0 to below `count`."""
        return int(self.share(name) * count)


def augmented(
    train: pd.DataFrame, settings: Augmentation, seed: int, epoch: int, is_one_text_a_query: bool = False
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The training pairs with some texts changed, and how many pairs each kind of change was made to.

    `train`: query_id, item_id, query_text, passage_text, and what else, which stays as it is; same rows, order and
    index. `is_one_text_a_query`: pairs of a query get the same changed query, as losses over lists need it. When
    nothing is on, `train` itself comes back. Raises ValueError when a `side` other than train is among the rows.
    """
    if "side" in train and (beyond := int((train["side"] != "train").sum())):
        raise ValueError(f"{beyond} rows of another side than train; only training pairs may be changed")
    of_queries = _query_changes(settings)
    counts = dict.fromkeys((*of_queries, "field_drop"), 0)
    if not any(getattr(settings, kind) for kind in counts):
        return train, counts
    queries, passages = [], []
    names = ("query_id", "item_id", "query_text", "passage_text")
    for query_id, item_id, query, passage in zip(*(train[name] for name in names), strict=True):
        drawn = (str(seed), str(epoch), str(query_id), query)
        draws = Draws(digest(*drawn, *(() if is_one_text_a_query else (str(item_id), passage))).hex())
        for kind, change in of_queries.items():
            if draws.share(kind) < getattr(settings, kind):
                query, before = change(query, draws), query
                counts[kind] += query != before
        queries.append(query)
        of_pair = Draws(digest(*drawn, str(item_id), passage).hex())
        if of_pair.share("field_drop") < settings.field_drop:
            passage, before = without_a_field(passage, of_pair), passage
            counts["field_drop"] += passage != before
        passages.append(passage)
    return train.assign(query_text=queries, passage_text=passages), counts


def with_typo(query: str, draws: Draws) -> str:
    """The query with one typo in a word of four letters or more; its first letter and tokens with digits stay.

    >>> [with_typo("wooden 2x4 deck", Draws(str(n))) for n in range(3)]
    ['woodn 2x4 deck', 'woooden 2x4 deck', 'wooden 2x4 deckk']
    """
    words = [span for start, token in _tokens(query) if not _DIGIT.search(token) for span in _words(start, token)]
    if not words:
        return query
    start, end = words[draws.below("typo word", len(words))]
    return query[:start] + _mistyped(query[start:end], draws) + query[end:]


def without_a_token(query: str, draws: Draws) -> str:
    """A query of three tokens or more without one of them; never one with a digit, of a size, or of a negation.

    >>> {without_a_token("tall chair without arms", Draws(str(n))) for n in range(9)} == {
    ...     "tall without arms", "chair without arms"}
    True
    """
    tokens = list(_tokens(query))
    if len(tokens) < DROP_MIN_TOKENS:
        return query
    kept = [size.span for size in sizes(query)]
    negating = {place for place, (_, token) in enumerate(tokens) if token.casefold() in _NEGATIONS}
    may_go = [
        place
        for place, (start, token) in enumerate(tokens)
        if not _DIGIT.search(token)
        and negating.isdisjoint((place - 1, place))
        and not any(start < end and begin < start + len(token) for begin, end in kept)
    ]
    if not may_go:
        return query
    gone = may_go[draws.below("token", len(may_go))]
    return " ".join(token for place, (_, token) in enumerate(tokens) if place != gone)


def with_synonym(query: str, draws: Draws, phrases: "regex.Pattern[str]", synonyms_of: dict[str, list[str]]) -> str:
    """The query with one of the phrases in it replaced by one of its synonyms. `synonyms_of` by casefolded phrase."""
    found = list(phrases.finditer(query))
    if not found:
        return query
    match = found[draws.below("phrase", len(found))]
    others = synonyms_of[match.group().casefold()]
    return query[: match.start()] + others[draws.below("synonym", len(others))] + query[match.end() :]


def with_other_units(query: str, draws: Draws) -> str:
    """The query with one of its sizes spelt another way; numbers stay as they are."""
    found = sizes(query)
    if not found:
        return query
    size = found[draws.below("size", len(found))]
    others = respelled(size)
    start, end = size.span
    return query[:start] + others[draws.below("spelling", len(others))] + query[end:]


def without_a_field(passage: str, draws: Draws) -> str:
    """A passage of two fields or more without one of them; never the first.

    >>> without_a_field("red mug | acme", Draws(""))
    'red mug'
    """
    fields = passage.split(FIELD_SEPARATOR)
    if len(fields) < 2:
        return passage
    gone = 1 + draws.below("field", len(fields) - 1)
    return FIELD_SEPARATOR.join(field for place, field in enumerate(fields) if place != gone)


def _query_changes(settings: Augmentation) -> dict[str, Callable[[str, Draws], str]]:
    """The changes to a query in the order in which they are made: what reads whole words comes before typos."""
    by_phrase = {phrase.casefold(): others for phrase, others in settings.synonyms_of.items()}
    longest_first = sorted(by_phrase, key=lambda phrase: (-len(phrase), phrase))
    either = "|".join(map(regex.escape, longest_first))
    phrases = regex.compile(rf"(?<!\w)(?:{either})(?!\w)", regex.IGNORECASE)
    return {
        "units": with_other_units,
        "synonyms": lambda query, draws: with_synonym(query, draws, phrases, by_phrase) if by_phrase else query,
        "token_drop": without_a_token,
        "typos": with_typo,
    }


def _tokens(query: str) -> Iterator[tuple[int, str]]:
    return ((match.start(), match.group()) for match in _TOKENS.finditer(query))


def _words(start: int, token: str) -> Iterator[tuple[int, int]]:
    return ((start + match.start(), start + match.end()) for match in _WORDS.finditer(token))


def _mistyped(word: str, draws: Draws) -> str:
    """The word with one typo; never the same word."""
    at = 1 + draws.below("typo place", len(word) - 1)
    letter, other = word[at], at + 1 if at + 1 < len(word) else at - 1
    kind = ("swap", "drop", "double", "neighbour")[draws.below("typo kind", 4)]
    if kind == "swap" and letter != word[other]:
        first = min(at, other)
        return word[:first] + word[first + 1] + word[first] + word[first + 2 :]
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "neighbour" and (near := _NEIGHBOURS.get(letter.lower())):
        key = near[draws.below("typo key", len(near))]
        return word[:at] + (key.upper() if letter.isupper() else key) + word[at + 1 :]
    return word[:at] + letter + word[at:]


def _neighbours() -> dict[str, str]:
    """The keys that touch each letter's on a US keyboard: each row stands half a key to the right of the one above."""
    at = {key: (row, place) for row, keys in enumerate(_KEY_ROWS) for place, key in enumerate(keys)}
    touching = {(0, -1), (0, 1), (-1, 0), (-1, 1), (1, 0), (1, -1)}
    return {
        key: "".join(other for other, (r, p) in at.items() if (r - row, p - place) in touching)
        for key, (row, place) in at.items()
    }


_NEIGHBOURS = _neighbours()
