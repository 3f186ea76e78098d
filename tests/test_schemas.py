"""Declarations are complete, and what they promise of privacy and layout holds."""

import pytest

from ecomspark.schemas import TABLES, Table


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_table_is_declared_whole(table: Table) -> None:
    names = table.column_names
    assert len(set(names)) == len(names)
    assert set(table.key) <= set(names)
    assert not any(table.column(name).is_nullable for name in table.key), "null keys never match"
    assert all(column.meaning for column in table.columns)
    assert table.one_row
    assert table.bytes_a_row > 0
    if table.bucketed_by:
        assert table.column(table.bucketed_by).type == "binary"


def test_text_never_enters_the_statistics_of_the_log() -> None:
    # The smallest and largest value of these columns stay in Delta's log for a month.
    for table in TABLES.values():
        assert not {"query_text", "title", "text", "description", "row", "source_key"} & set(table.statistics), (
            table.name
        )
        assert set(table.statistics) <= set(table.column_names)


def test_only_state_tables_say_who_changed_a_row() -> None:
    ledgers = ("runs", "leases", "holds")  # their rows name a run anyway
    for table in TABLES.values():
        has_author = "changed_by" in table.column_names
        assert has_author == (table.kind == "state" and table.name not in ledgers), table.name
