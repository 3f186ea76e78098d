"""One module per job: `Config`, `run(spark, config, run_id)`, pure steps. Jobs meet only in tables."""
