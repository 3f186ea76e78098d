"""Settings under which a job over ten rows takes half its time. Not for what is timed, and not for the tests that start
Spark for themselves (test_submit, test_launch): those leave Spark as users have it."""

# Compiling a plan, checking each step of planning it and planning it anew take longer than running it over ten rows:
# a run of a job takes 2.6 s instead of 4.4 s. Reading Delta's logs in one task each makes it another sixth faster.
QUICK = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.lightweightPlanChangeValidation": "false",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "2",
}
