"""Ids of shoppers become pseudonyms by a key that is in no plan, and nothing is read without it."""

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ecomspark.errors import ConfigError, ContractError
from ecomspark.features.conform import ColumnMap
from ecomspark.pipelines import import_consents, import_interactions, import_online_retail, import_shopper_links
from ecomspark.pseudonyms import Shoppers, check_key, faults_of, key_at, made, mark_of, pseudonymised

KEY = b"canary-key-1618-canary-key-1618-"
MAPPING = {"interaction_id": "id", "kind": "what", "item_id": "sku", "occurred_at": "ts"}


@pytest.fixture
def shoppers(tmp_path: Path) -> Shoppers:
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    return Shoppers(key_file=tmp_path / "key", key_id="k1")


def named(text: str, key: bytes = KEY, key_id: str = "k1") -> str:
    """By the standard library's other way to an HMAC."""
    return f"{key_id}-{hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]}"


def maps(**columns: Any) -> dict[str, ColumnMap]:
    return {name: ColumnMap.model_validate(value) for name, value in columns.items()}


def settings(**changes: Any) -> dict[str, Any]:
    return {"warehouse": "w", "source": {"format": "csv", "path": "no such file"}, **changes}


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=9))
def test_a_pseudonym_is_the_hmac_of_the_id_without_blanks_around_it(ids: list[str | None]) -> None:
    found = made(pa.array(ids, pa.string()), KEY, "k1").to_pylist()
    assert found == [named(text.strip()) if text and text.strip() else None for text in ids]


def test_ids_of_two_keys_never_mix() -> None:
    ids = pa.array(["17850", "17851"])
    first, rotated, renamed = (made(ids, *key).to_pylist() for key in ((KEY, "k1"), (KEY[::-1], "k2"), (KEY, "k2")))
    assert not set(first) & set(rotated)
    assert {name[:3] for name in rotated} == {"k2-"}
    assert not {name[3:] for name in first} & {name[3:] for name in rotated}
    assert not set(first) & set(renamed), "whose the key is stands in the id"


@pytest.mark.parametrize(("content", "found"), [(None, "No such file"), (b"", "found 0"), (KEY[:31], "found 31")])
def test_without_a_key_nothing_is_read(content: bytes | None, found: str, tmp_path: Path) -> None:  # S9
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    key = {"key_file": path, "key_id": "k1"}
    configs = [
        (import_interactions, {"columns": {**MAPPING, "shopper_id": "user"}}),
        (import_online_retail, {}),
        (import_consents, {"columns": {"shopper_id": "user"}}),
        (import_shopper_links, {"columns": {"shopper_id": "user", "other_id": "visitor"}}),
    ]
    for pipeline, more in configs:
        config = pipeline.Config(**settings(shoppers=key, **more))
        for started in (pipeline.run, getattr(pipeline, "plan", pipeline.run)):
            with pytest.raises(ConfigError, match=f"key_file: {path}: .*{found}.*openssl rand"):
                started(None, config, "no session is asked")


def test_a_mapping_that_names_shoppers_needs_a_key_and_says_nothing_else(shoppers: Shoppers) -> None:  # S9
    with pytest.raises(ValidationError, match=r"columns\.shopper_id: names shoppers, and there is no key"):
        import_interactions.Config(**settings(columns={**MAPPING, "shopper_id": "user"}))
    with pytest.raises(ValidationError, match="nobody is known without"):
        import_online_retail.Config(**settings(consent={"purpose": "personalisation", "basis": "b"}))
    with pytest.raises(ValidationError, match="shoppers"):
        import_consents.Config(**settings(columns={"shopper_id": "user"}))
    for wrong in ({"constant": "x"}, {"from": ["site", "user"]}, {"from": "user", "default": "x"},
                  {"from": "user", "values": {"a": "b"}}):  # fmt: skip
        assert "`from` (one column) and `cast` only" in str(faults_of(maps(shopper_id=wrong), ["shopper_id"], shoppers))
    both = maps(shopper_id="user", basket_id={"from": ["user", "day"], "cast": "bigint"})
    assert "columns.basket_id: cast" in str(faults_of(both, ["shopper_id"], shoppers))
    fine = maps(shopper_id={"from": "user", "cast": "bigint", "default": None}, basket_id={"from": ["user", "day"]})
    assert faults_of(fine, ["shopper_id", "other_id"], shoppers) == []
    assert faults_of(maps(item_id="sku"), ["shopper_id"], None) == []


def test_a_key_that_all_may_read_is_warned_of(shoppers: Shoppers, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "ecomspark"):
        check_key(shoppers)
        assert not caplog.messages
        shoppers.key_file.chmod(0o644)
        check_key(shoppers)
    assert "every user of this host may read it" in caplog.text


def test_a_worker_with_another_key_than_the_driver_stops(shoppers: Shoppers) -> None:
    assert key_at(str(shoppers.key_file), mark_of(KEY)) == KEY
    with pytest.raises(ConfigError, match="not the driver's key"):
        key_at(str(shoppers.key_file), mark_of(KEY[::-1]))
    assert named("ecomspark: which key")[3:] != mark_of(KEY), "no shopper's pseudonym is the mark"


def test_whatever_is_made_of_a_shoppers_column_is_made_of_the_pseudonym(
    spark: Any, shoppers: Shoppers, tmp_path: Path
) -> None:  # S8, S9
    source = spark.createDataFrame(
        [(17850.0, "canary-a", "d1", None), (None, " ", "d2", "17850,canary-a,"), (17851.0, None, "d3", " ")],
        "number double, user string, day string, _malformed string",
    )
    columns = maps(shopper_id={"from": "number", "cast": "bigint"}, other_id="user", basket_id={"from": ["user", "day"]},
                   absent="nowhere")  # fmt: skip
    rows, mapped = pseudonymised(source, columns, ["shopper_id", "other_id"], shoppers)
    assert (mapped["shopper_id"].cast, mapped["basket_id"]) == (None, columns["basket_id"])
    found = [tuple(row) for row in rows.collect()]
    line = named("17850,canary-a,")
    assert found == [
        (named("17850"), named("canary-a"), "d1", None),
        (None, None, None, f"a line that may name a shopper, not kept: {line}"),
        (None, None, None, "a blank line"),
    ], "what a broken line seems to say may be an id in another column's place"
    plans = rows._jdf.queryExecution().toString()
    assert "pseudonyms" in plans
    assert not [bad for bad in ("canary", KEY.decode(), KEY.hex(), mark_of(KEY)) if bad in plans]
    texts = spark.createDataFrame([("17850.0",), (" 17850",), ("A17",), ("",)], "number string")
    cast, _ = pseudonymised(texts, maps(shopper_id={"from": "number", "cast": "bigint"}), ["shopper_id"], shoppers)
    assert [row["number"] for row in cast.collect()] == [named("17850"), named("17850"), named("A17"), None]
    with pytest.raises(ContractError, match=r"columns.shopper_id: number is double, .*: say cast: bigint"):
        pseudonymised(source, maps(shopper_id="number"), ["shopper_id"], shoppers)

    (tmp_path / "other").write_bytes(KEY[::-1])
    lost = shoppers.model_copy(update={"key_file": tmp_path / "other"})
    rows, _ = pseudonymised(source.where("user LIKE 'canary%'"), columns, ["other_id"], lost)
    (tmp_path / "other").unlink()
    with pytest.raises(Exception, match=r"ConfigError, by way of .*pseudonyms\.py:\d+ read_key") as error:
        rows.collect()
    assert "canary" not in str(error.value)


def test_the_template_and_the_default_take_no_shopper_over(tmp_path: Path) -> None:
    assert "shopper_id" not in import_online_retail.Config(**settings()).columns
    assert import_online_retail.Config(**settings()).shoppers is None
