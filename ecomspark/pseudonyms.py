"""Who a shopper is to us: HMAC-SHA-256 of the shop's own id, made at import and nowhere else.

A pseudonym is `<key_id>-<32 hex digits>`: the name of the key, a hyphen, the first 128 bits of the HMAC. The key's
bytes are read from its file inside the Python worker: a plan holds the file's path, and a mark by which the worker sees
that it has the driver's key; no table, log or plan holds the bytes. A key that is rotated gets another name, so that
ids of two keys never mix: nobody can tell then that two of them are one shopper.

The function is deterministic: where Spark evaluates it twice, the same comes out, so its rows need not be staged before
they feed a merge. What it does NOT do: a pseudonym hides an id from who has no key; who has it can try out ids.
"""

import hmac
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import arrow_udf

from ecomspark.config import Name, Section, setting
from ecomspark.errors import ConfigError, ContractError, without_values
from ecomspark.features.conform import ColumnMap, cast_as, clean
from ecomspark.tables import MALFORMED

log = logging.getLogger("ecomspark")

_KEY_BYTES = 32  # as many as SHA-256 gives: RFC 2104 advises against fewer
_PSEUDONYM_BYTES = 16
_READABLE_BY_ALL = 0o004
_INEXACT = ("float", "double", "decimal")
_MAKE_ONE = "make one: `openssl rand -out FILE 32`, then `chmod 600 FILE`"


class Shoppers(Section):
    """The key that makes pseudonyms of shoppers' ids."""

    key_file: Path = setting(
        ..., "file with the key: 32 random bytes or more; under this path on every host", decides=False
    )
    key_id: Name = setting(..., "the key's name, in each pseudonym; another key must have another name")


def read_key(path: Path) -> bytes:
    """The key's bytes. Raises ConfigError when the file cannot be read or holds fewer than 32 bytes."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"shoppers.key_file: {path}: cannot be read ({error.strerror}); {_MAKE_ONE}") from None
    if len(key) < _KEY_BYTES:
        raise ConfigError(
            f"shoppers.key_file: {path}: expected {_KEY_BYTES} bytes at least, found {len(key)}; {_MAKE_ONE}"
        )
    return key


def check_key(shoppers: Shoppers) -> None:
    """See on the driver, before anything is read, that there is a key. Raises ConfigError (see `read_key`)."""
    read_key(shoppers.key_file)
    if readable_by_all(shoppers.key_file):
        log.warning("shoppers.key_file: %s: every user of this host may read it; `chmod 600` it", shoppers.key_file)


def readable_by_all(path: Path) -> bool:
    return bool(path.stat().st_mode & _READABLE_BY_ALL)


def faults_of(columns: Mapping[str, ColumnMap], ours: Sequence[str], shoppers: Shoppers | None) -> list[str]:
    """What is wrong with a mapping in which the columns `ours` name shoppers; nothing if they can be pseudonymised."""
    mine = {name: columns[name] for name in ours if name in columns}
    if mine and shoppers is None:
        return [f"columns.{', '.join(mine)}: names shoppers, and there is no key: set shoppers.key_file and key_id"]
    faults = []
    for name, column in mine.items():
        if set(column.model_dump(exclude_defaults=True)) - {"source", "cast"} or not isinstance(column.source, str):
            faults.append(f"columns.{name}: names shoppers: expected `from` (one column) and `cast` only")
    origins = {origin for column in mine.values() for origin in column.sources}
    for name, column in columns.items():
        if name not in mine and column.cast and origins & set(column.sources):
            faults.append(f"columns.{name}: cast: what it is made of names shoppers, and is a pseudonym by then")
    return faults


def pseudonymised(
    rows: DataFrame, columns: Mapping[str, ColumnMap], ours: Sequence[str], shoppers: Shoppers
) -> tuple[DataFrame, dict[str, ColumnMap]]:
    """A source's rows with pseudonyms in those of its columns that `ours` come from, for whatever is made of them, and
    the mapping to read them by. No column holds the id any more, nor does a line that could not be read as a row.

    Null and blank stay null; else a pseudonym is that of the text, without blanks around it: after the mapping's own
    cast. A column that is not there or cannot be text is left alone: `features.conform.differences` names it. Raises
    ContractError when a column's numbers have a point in their text.
    """
    mine = {name: columns[name] for name in ours if name in columns}
    types = {field.name: field.dataType.simpleString() for field in rows.schema.fields}
    faults = [
        f"  columns.{name}: {column.source} is {types[str(column.source)]}, whose text is not the id: say cast: bigint"
        for name, column in mine.items()
        if not column.cast and types.get(str(column.source), "").startswith(_INEXACT)
    ]
    if faults:
        raise ContractError("\n".join(["shoppers: the source's ids cannot be told apart; nothing was read", *faults]))
    for origin, cast in {str(column.source): column.cast for column in mine.values()}.items():
        if origin in types and not types[origin].startswith(("array<", "map<", "struct<")):
            id_of = F.col("`" + origin.replace("`", "``") + "`")
            # What the cast cannot read keeps its own text: a shopper must not become nobody.
            said = id_of.cast("string")
            text = F.coalesce(cast_as(id_of, cast).cast("string"), said) if cast else said
            rows = rows.withColumn(origin, pseudonym(text, shoppers))
    if MALFORMED in rows.columns:
        # Its digits keep two such lines apart in quarantine.
        kept = F.concat(F.lit("a line that may name a shopper, not kept: "), pseudonym(F.col(MALFORMED), shoppers))
        is_read, others = F.col(MALFORMED).isNull(), [name for name in rows.columns if name != MALFORMED]
        # What such a line seems to say may be an id in another column's place.
        nothing = {name: F.when(is_read, F.col("`" + name.replace("`", "``") + "`")) for name in others}
        line = F.when(~is_read, F.coalesce(kept, F.lit("a blank line")))
        rows = rows.withColumns({**nothing, MALFORMED: line})
    return rows, {**columns, **{name: ColumnMap.model_validate(str(column.source)) for name, column in mine.items()}}


def pseudonym(text: Column, shoppers: Shoppers) -> Column:
    """The pseudonym of each text. Evaluated in Python workers, which read the key. Raises ConfigError without a key."""
    path, key_id = str(shoppers.key_file.absolute()), shoppers.key_id
    mark = mark_of(read_key(shoppers.key_file))

    def pseudonyms(ids: pa.Array) -> pa.Array:
        with without_values():
            return made(ids, key_at(path, mark), key_id)

    in_python: Column = arrow_udf(pseudonyms, "string")(clean(text))  # type: ignore[call-overload]
    return in_python


def made(ids: pa.Array, key: bytes, key_id: str) -> pa.Array:
    """The pseudonyms of texts, in the order given; null for null and for blank.

    >>> made(pa.array([" 17850 ", " ", None]), bytes(32), "k1").to_pylist()
    ['k1-2f744b7b572e995ca98fa377b0ac5665', None, None]
    """
    encoded = ids.dictionary_encode()
    named = (text.strip() for text in encoded.dictionary.to_pylist())
    names = [f"{key_id}-{_hmac(key, text)[:_PSEUDONYM_BYTES].hex()}" if text else None for text in named]
    return pa.array(names, pa.string()).take(encoded.indices)


def pseudonym_of(shopper: str, shoppers: Shoppers) -> str:
    """The pseudonym of one id that is not blank. Raises ConfigError without a key."""
    return str(made(pa.array([shopper]), read_key(shoppers.key_file), shoppers.key_id)[0])


def mark_of(key: bytes) -> str:
    """What tells keys apart and says nothing of them: the HMAC of a fixed text."""
    return _hmac(key, "ecomspark: which key")[_PSEUDONYM_BYTES:].hex()


@lru_cache(maxsize=4)
def key_at(path: str, mark: str) -> bytes:
    """In a worker: the key of a file, read once. Raises ConfigError when this host has another one than the driver."""
    key = read_key(Path(path))
    if mark_of(key) != mark:
        raise ConfigError(f"shoppers.key_file: {path}: not the driver's key; every host must have the same")
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
