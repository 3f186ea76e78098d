"""What a run read: files of each table and columns of them, as Spark's plans say, and bytes, as its tasks count them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PLACE = re.compile(r"\[file:(?P<path>[^,\]]+)")
_NAME = re.compile(r"(?:^|,)(\w+):")
_COLUMNS = re.compile(r"ReadSchema: struct<(?P<columns>.*)>", re.DOTALL)


@dataclass(frozen=True)
class Scan:
    """One reading of a table in a plan that was executed."""

    table: str
    files: int
    columns: tuple[str, ...]


@dataclass
class Watch:
    """What a session reads from now on."""

    spark: Any
    execution: int = -1
    stage: int = -1

    def __post_init__(self) -> None:
        self.spark.conf.set("spark.sql.maxMetadataStringLength", "10000")  # else paths and schemas are cut off
        self.execution = max((e.executionId() for e in self._executions()), default=-1)
        self.stage = max((s.stageId() for s in self._stages()), default=-1)

    def bytes_read(self) -> int:
        """What tasks read from files, shuffles and caches not counted."""
        return sum(int(stage.inputBytes()) for stage in self._stages() if stage.stageId() > self.stage)

    def scans(self, warehouse: Path) -> list[Scan]:
        """Each reading of a table's data; the reading of logs is not among them."""
        found = []
        new = [e for e in self._executions() if e.executionId() > self.execution]
        # Ids are given one by one: a gap at the start is what spark.sql.ui.retainedExecutions let go of.
        assert new, "nothing was executed"
        assert min(e.executionId() for e in new) == self.execution + 1, f"the first of {len(new)} plans are not kept"
        for execution in new:
            status = self.spark._jsparkSession.sharedState().statusStore()
            values = status.executionMetrics(execution.executionId())
            for node in _listed(status.planGraph(execution.executionId()).allNodes()):
                place = _PLACE.search(node.desc())
                if not node.name().startswith("Scan parquet") or not place:
                    continue
                parts = Path(place["path"]).parts
                if not Path(place["path"]).is_relative_to(warehouse) or "_delta_log" in parts:
                    continue
                count = next(m for m in _listed(node.metrics()) if m.name() == "number of files read")
                value = values.get(count.accumulatorId())
                files = int(str(value.get()).replace(",", "")) if value.isDefined() else 0
                columns = _COLUMNS.search(node.desc())
                table = parts[len(warehouse.parts)]
                names = _NAME.findall(columns["columns"]) if columns else []
                found.append(Scan(table, files, tuple(names)))
        return found

    def _executions(self) -> list[Any]:
        return _listed(self.spark._jsparkSession.sharedState().statusStore().executionsList())

    def _stages(self) -> list[Any]:
        context = self.spark.sparkContext
        no_quantiles = context._gateway.new_array(context._jvm.double, 0)
        return _listed(context._jsc.sc().statusStore().stageList(None, False, False, no_quantiles, None))


def _listed(found: Any) -> list[Any]:
    return [found.apply(n) for n in range(found.size())]
