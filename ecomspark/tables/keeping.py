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
    if rows.sparkSession.conf.get("spark.sql.adaptive.enabled") != "true":
        return rows.persist()  # its text has one plan, not two, and grows slowly; begun alone, some unions do not fit
    jvm: Any = rows.sparkSession._jvm
    frame: Any = rows._jdf
    # It says nothing of how its rows lie. Else a join of it with itself would read a part twice within one task, and
    # where that part must be made again, the end of one sort would take the memory of the other: rows would be missing.
    partitioning = jvm.org.apache.spark.sql.catalyst.plans.physical.UnknownPartitioning(0)
    ordering = getattr(getattr(jvm.scala.collection.immutable, "Nil$"), "MODULE$")
    nothing, size = jvm.scala.Option.empty(), jvm.scala.Option.apply(frame.queryExecution().optimizedPlan().stats())
    leaf = jvm.org.apache.spark.sql.execution.LogicalRDD(
        frame.logicalPlan().output(), _begun(jvm, frame), partitioning, ordering, False, nothing,
        frame.sparkSession(), size, nothing,
    )  # fmt: skip
    cut = jvm.org.apache.spark.sql.classic.Dataset.ofRows(frame.sparkSession(), leaf)
    return DataFrame(cut, rows.sparkSession).persist()


def _begun(jvm: Any, frame: Any) -> Any:
    """The rows as an RDD. Its stages that run now see the session's settings, as those of an action do: how long a
    Python worker may be silent, how many rows it is given at once."""
    context, settings = frame.sparkSession().sparkContext(), frame.sparkSession().sessionState().conf().getAllConfs()
    before = context.getLocalProperties()
    with_settings = before.clone()
    with_settings.putAll(jvm.scala.jdk.javaapi.CollectionConverters.asJava(settings))
    context.setLocalProperties(with_settings)
    try:
        return frame.queryExecution().toRdd()
    finally:
        context.setLocalProperties(before)
