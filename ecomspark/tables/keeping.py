"""Frames that are read more than once: persisted, and without their past in the plans of what reads them."""

from typing import Any

from pyspark.sql import DataFrame


def kept(rows: DataFrame) -> DataFrame:
    """`rows`, to be computed once; a leaf in every plan that it stands in. What it takes to begin (the shuffles of an
    adaptive plan) runs now, the rest when it is first read. `unpersist` lets go of it.

    Spark spells out what a persisted frame was made of, first and final plan of it, wherever it stands in a plan, and
    spells the whole anew at every stage: of frames kept one behind the other, 100 million characters a statement in
    a ranking run of 13,520 candidates, and half of its time. Their computation stays known, unlike after
    `localCheckpoint`: what an executor takes with it is made again. The leaf is an inner part of the pinned pyspark,
    reached in the JVM: what its checkpoints put in the place of a plan.
    """
    jvm: Any = rows.sparkSession._jvm
    frame = rows._jdf
    leaves = getattr(getattr(jvm.org.apache.spark.sql.execution, "LogicalRDD$"), "MODULE$")
    leaf = leaves.fromDataset(frame.queryExecution().toRdd(), frame, False)
    return DataFrame(
        jvm.org.apache.spark.sql.classic.Dataset.ofRows(frame.sparkSession(), leaf), rows.sparkSession
    ).persist()
