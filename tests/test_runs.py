"""What a run says of itself; no Spark is asked."""

import logging
from typing import Any

import pytest

from ecomspark.models.costs import Costs
from ecomspark.runs import Run
from ecomspark.tables import Author, Warehouse


def test_a_stage_says_what_it_added_and_of_rates_what_they_are(caplog: pytest.LogCaptureFixture) -> None:
    nothing: Any = None
    run = Run(Warehouse(nothing, "none", 1), Author("job", "1"), None, False, {})
    with caplog.at_level(logging.INFO, logger="ecomspark"):
        for stage, tokens, seconds in (("first", 100, 1.0), ("second", 20, 2.0)):
            with run.stage(stage):
                run.spent(stage, Costs(rows=10, tokens=tokens), seconds)
                run.count(rows_made=10)
    said = {line.split(":")[1].strip(): line for line in caplog.messages if "rows made" in line}
    assert "100 model tokens, 100 tokens per second, 100,000 seconds a million, 10 rows made" in said["first"]
    assert "20 model tokens, 40 tokens per second, 150,000 seconds a million, 10 rows made" in said["second"]
