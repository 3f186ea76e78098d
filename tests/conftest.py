"""One Spark session for the whole test process, and rows of declared tables without the columns that do not matter."""

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from quick import QUICK

pytest_plugins = ["shop"]

# On a busy machine any example may take long: a time says nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent

# Workers find the fakes that tests define; no library may ask a network for a model.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
os.environ["HF_HUB_OFFLINE"] = "1"
# Token budgets that are found here are of tiny models: they stay out of the user's cache.
_cache = tempfile.TemporaryDirectory(prefix="ecomspark-cache-")
os.environ["ECOMSPARK_CACHE"] = _cache.name


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The session that every Spark test shares: it takes 10 s to start, and Delta's classes some more to load.

    The project's own properties, with what tests differ in: two slots whatever the machine (the figures of the tests
    about partitions count on it), tasks tried four times (fault tests), warehouse of the catalog in a folder of ours,
    and what makes small runs quick. What is kept of the last 1,000 plans would take a tenth of the heap: of 200 it is
    enough for a test that looks at what a run read.
    """
    from pyspark.sql import SparkSession

    own = {
        "spark.master": "local[2,4]",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("catalog")),
        **QUICK,
        "spark.sql.ui.retainedExecutions": "200",
        "spark.driver.memory": "3g",
        "spark.python.daemon.module": "ecomspark.daemon",  # as the demo: workers come and go
    }
    flags = " ".join(f"--conf {key}={value}" for key, value in own.items())
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {ROOT / 'conf/spark-local.conf'} {flags} pyspark-shell"
    session = SparkSession.builder.appName("tests").getOrCreate()
    gc.freeze()  # each run has Python's collector look for what it left: not at all that is imported, too
    yield session
    session.stop()


@pytest.fixture(autouse=True)
def forgotten_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test with tables of its own, let Delta forget their logs: it keeps each for an hour, with the plans of its
    state, and those of ten worlds fill a heap of 2 GiB, whose collector then takes a core."""
    yield
    if "spark" in request.fixturenames and "tmp_path" in request.fixturenames:
        spark = request.getfixturevalue("spark")
        gc.collect()
        spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
        spark.catalog.clearCache()


@pytest.fixture
def warehouse(spark: Any, tmp_path: Path) -> Any:
    """An empty warehouse in a folder of the test's own."""
    from ecomspark.tables import Warehouse

    return Warehouse(spark, str(tmp_path / "warehouse"), buckets=2)


@pytest.fixture
def rows(spark: Any) -> Callable[..., Any]:
    """`rows(TABLE, {...}, {...})`: a DataFrame of a declared table; columns that are not named get a harmless value."""
    return lambda table, *given: build_rows(spark, table, *given)


def build_rows(spark: Any, table: Any, *given: dict[str, Any]) -> Any:
    """What the fixture `rows` gives, for fixtures of a wider scope."""
    from ecomspark.tables import ddl

    unknown = {name for row in given for name in row} - set(table.column_names)
    assert not unknown, f"{table.name} has no column {', '.join(unknown)}"
    filled = [
        tuple(row[c.name] if c.name in row else None if c.is_nullable else harmless(c.type) for c in table.columns)
        for row in given
    ]
    return spark.createDataFrame(filled, ddl(table))


def harmless(type_name: str) -> Any:
    """A value for a column that a test does not care about."""
    values: dict[str, Any] = {
        "string": "x", "binary": b"\0" * 16, "int": 0, "bigint": 0, "double": 0.0, "boolean": True,
        "timestamp": datetime(2020, 1, 1, tzinfo=UTC), "decimal(18,4)": Decimal(1), "date": datetime(2020, 1, 1).date(),
    }  # fmt: skip
    return values.get(type_name, {} if type_name.startswith("map") else [])
