"""The text a model reads and the terms that BM25 reads: pure functions of a source, numbered by recipe.

No Spark, no torch, no clock. Training and scoring use the same functions, so that a model is asked in the
words it was taught in. A recipe or analyser that a live checkpoint or table names is never edited: a change
gets a new number, because its digest is part of what identifies texts, terms and scores.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache
from html.parser import HTMLParser
from typing import Annotated, Any, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field

DIGEST_BYTES = 16
IDENTITY_MAX_CHARACTERS = 1_000

_SETTLES_WITHIN = 5
_TERM_MAX_CHARACTERS = 64
_UNWRITTEN = regex.compile(r"[\p{Cf}\p{Cs}\p{Co}\p{Cn}]")
_SPACES = regex.compile(r"[\s\p{Cc}\p{Z}]+")
_WITHOUT_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
_TERMS = regex.compile(
    rf"(?P<run>[{_WITHOUT_SPACES}]+)|(?P<digits>\p{{Nd}}+)|(?P<word>[\p{{L}}\p{{M}}--[{_WITHOUT_SPACES}]]+)", regex.V1
)
_APOSTROPHES = regex.compile(r"(?<=\p{L})['\u2019\u02bc](?=\p{L})")
_ACCENTS = regex.compile(r"(?<=[a-z\u03b1-\u03c9])[\u0300-\u036f]+")


def digest(*parts: str | None) -> bytes:
    """128 bits that name a sequence of texts: sha256 over `<bytes>:<text>` for each part, `-` for a missing one.

    The lengths keep ("ab", "c") apart from ("a", "bc"). `features.digests.digest_of` is the same in Spark SQL.

    >>> digest("uk", "red mug").hex()
    'fbab464485c88089d62bbf9a0b5aa7a1'
    """
    sha = hashlib.sha256()
    for part in parts:
        # Spark cannot hold a lone surrogate; a Python caller can, and must get a digest all the same.
        raw = None if part is None else part.encode("utf-8", errors="surrogatepass")
        sha.update(b"-" if raw is None else b"%d:" % len(raw) + raw)
    return sha.digest()[:DIGEST_BYTES]


def settings_digest(settings: BaseModel | Mapping[str, object]) -> bytes:
    """128 bits that name settings: sha256 over their JSON with sorted keys and no spaces."""
    plain = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    return digest(json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True))


class TextRecipe(BaseModel):
    """How the texts of queries and items are made. Every key decides output and so is part of the digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Annotated[Literal[1], Field(description="version of the recipe's code")] = 1
    is_lowercase: Annotated[bool, Field(description="fold case; false for a cased encoder")] = True
    query_max_characters: Annotated[int, Field(gt=0, description="characters kept of a query")] = 256
    fields: Annotated[
        dict[Literal["title", "brand", "category", "attributes", "description"], Annotated[int, Field(gt=0)]],
        Field(min_length=1, description="item fields in the order the model reads them, each with the characters kept"),
    ] = {"title": 200, "brand": 60, "category": 100, "attributes": 300, "description": 1_000}

    @property
    def digest(self) -> bytes:
        # A mapping's order decides the text, and sorted JSON would lose it: hence the list of pairs.
        return settings_digest({**self.model_dump(mode="json"), "fields": [list(pair) for pair in self.fields.items()]})


class Analyser(BaseModel):
    """How a field becomes terms for BM25, in one language. Every key decides output and so is part of the digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Annotated[Literal[1], Field(description="version of the analyser's code")] = 1
    language: Annotated[str | None, Field(description="Snowball algorithm for stems; null: words as they are")] = None
    max_characters: Annotated[int, Field(gt=0, description="characters read of a field")] = 2_000

    @property
    def digest(self) -> bytes:
        return settings_digest(self)


IDENTITY_RECIPE_DIGEST = digest("identity", "1")


def normalise_query(text: str) -> str:
    """Identity recipe 1: what two queries of a locale have in common when they are the same query.

    NFKC and full case folding (Unicode 3.13, NFKC_Casefold), unwritten characters off, white space to one
    blank, 1,000 characters at most. Repeated until nothing changes, so normalising twice is normalising once.
    It never changes: `query_id` is made of it.

    >>> normalise_query("  Straße\\u200b  M\\u1d41g ")
    'strasse mug'
    """
    text = text[: 4 * IDENTITY_MAX_CHARACTERS]
    for _ in range(_SETTLES_WITHIN):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        settled = _SPACES.sub(" ", _UNWRITTEN.sub("", folded)).strip()[:IDENTITY_MAX_CHARACTERS].rstrip()
        if settled == text:
            break
        text = settled
    return text


def query(text: str, recipe: TextRecipe) -> tuple[str, int]:
    """A query as a model reads it, and how many characters the cap took off."""
    return _cut(_plain(text[: 4 * recipe.query_max_characters], recipe.is_lowercase), recipe.query_max_characters)


def passage(item: Mapping[str, str | None], recipe: TextRecipe) -> tuple[str, int]:
    """An item as a model reads it, and how many characters the fields' budgets took off.

    Fields in the recipe's order, HTML off, separated by ` | `; empty ones leave no trace. Attributes come as one
    text, as `features.texts.attributes_text` makes it. Of a field only the first eight budgets' worth of raw
    characters is looked at, so ten million characters cost no more than that.

    >>> passage({"title": "RED <b>Mug</b>", "brand": None, "description": "Holds 300&nbsp;ml"}, TextRecipe())
    ('red mug | holds 300 ml', 0)
    """
    made, cut = [], 0
    for name, budget in recipe.fields.items():
        whole = item.get(name) or ""
        kept, beyond = _cut(_plain(_without_html(whole[: 8 * budget]), recipe.is_lowercase), budget)
        cut += beyond + max(0, len(whole) - 8 * budget)
        if kept:
            made.append(kept)
    return " | ".join(made), cut


def terms(text: str, analyser: Analyser) -> list[str]:
    """The terms of a text in order, repetitions kept: what BM25 counts.

    NFKC, case, accents of Latin and Greek off, apostrophes inside words off, letters and digits split, Snowball
    stems. Scripts written without spaces (Chinese, Japanese, Thai and their like) become overlapping bigrams, a
    lone character itself, so a one-character query finds only lone characters. Latin words among them stay whole.

    >>> terms("2x CAFÉ Mugs, 250ml", Analyser(language="english"))
    ['2', 'x', 'cafe', 'mug', '250', 'ml']
    >>> terms("不锈钢ABC杯", Analyser())
    ['不锈', '锈钢', 'abc', '杯']
    """
    plain = unicodedata.normalize("NFKC", text[: analyser.max_characters]).casefold()
    plain = _APOSTROPHES.sub("", _UNWRITTEN.sub("", plain))
    plain = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", plain)))
    found: list[str] = []
    for match in _TERMS.finditer(plain):
        token = match.group()
        if match.lastgroup == "run":
            found.extend([token] if len(token) == 1 else (token[i : i + 2] for i in range(len(token) - 1)))
        elif match.lastgroup == "digits" or analyser.language is None:
            found.append(token[:_TERM_MAX_CHARACTERS])
        else:
            found.append(_stem(analyser.language, token[:_TERM_MAX_CHARACTERS]))
    return found


def languages() -> frozenset[str]:
    """The Snowball algorithms that `Analyser.language` may name."""
    import snowballstemmer  # here and below: a machine that only scores needs no stems

    return frozenset(snowballstemmer.algorithms())


@lru_cache(maxsize=200_000)
def _stem(language: str, word: str) -> str:
    return str(_stemmer(language).stemWord(word))


@cache
def _stemmer(language: str) -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer(language)


def _plain(text: str, is_lowercase: bool) -> str:
    plain = unicodedata.normalize("NFKC", text)
    if is_lowercase:
        plain = unicodedata.normalize("NFKC", plain.lower())
    return _SPACES.sub(" ", _UNWRITTEN.sub("", plain)).strip()


def _cut(text: str, budget: int) -> tuple[str, int]:
    """The first `budget` characters, without a word that the cut broke unless it is the only one."""
    if len(text) <= budget:
        return text, 0
    kept = text[:budget]
    if text[budget] != " " and " " in kept:
        kept = kept[: kept.rindex(" ")]
    return kept.rstrip(), len(text) - len(kept.rstrip())


class _Text(HTMLParser):
    """Collects what a browser would show; tags become blanks, scripts and styles nothing."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.shown: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style")
        self.shown.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= self.hidden > 0 and tag in ("script", "style")
        self.shown.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.shown.append(data)


def _without_html(text: str) -> str:
    if "<" not in text and "&" not in text:
        return text
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.shown)
