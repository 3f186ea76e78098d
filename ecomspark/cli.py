"""The command `ecomspark`: run a job, plan it, or run all of a file; put rankings back, explain a rank, list and
compare checkpoints, print settings, look for what would stop a run, show the demo."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from ecomspark import __version__, benchmark, compare, config, demo, doctor, explain, holds, launch, model_list, why


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ecomspark", description="Batch scoring of a shop's catalogue on Spark.")
    parser.add_argument("--version", action="version", version=f"ecomspark {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a job", description="Run a job in a Spark session of its own.")
    run.add_argument("job", choices=launch.jobs(), metavar="JOB", help=", ".join(launch.jobs()))
    launch.add_arguments(run)

    planned = commands.add_parser(
        "plan",
        help="say what a run of a job would do now",
        description="Say what a run would do now, why where that is known, and what it would take; publish nothing.",
    )
    planned.add_argument("job", choices=launch.jobs(), metavar="JOB", help="one that has a plan; `run JOB` of any")
    launch.add_plan_arguments(planned)
    planned.add_argument(
        "--save", type=Path, metavar="FILE", help="keep the versions it saw, for `run JOB --plan FILE`"
    )
    planned.add_argument("--json", action="store_true", dest="as_json", help="one JSON object instead of a table")

    back = commands.add_parser(
        "rollback",
        help="put a variant's rankings back to what a run published, and hold it there",
        description="Publish what a run of rank_candidates had left of a variant as a new version, and stop the "
        "variant from being published until `ecomspark release`.",
    )
    back.add_argument("--to", required=True, metavar="RUN", help="run_id of the run of rank_candidates to go back to")
    _add_hold_arguments(back)
    hold = commands.add_parser("hold", help="stop a variant from being published")
    hold.add_argument("--reason", default="by hand", metavar="WORDS", help="why, for those who find it stopped")
    _add_hold_arguments(hold)
    _add_hold_arguments(commands.add_parser("release", help="let a variant be published again"))
    tidy = commands.add_parser("maintain", help="the same as `run maintain`")
    launch.add_arguments(tidy)

    settings = commands.add_parser("config", help="print a job's settings, each explained")
    settings.add_argument("job", choices=launch.jobs(), metavar="JOB", help=", ".join(launch.jobs()))

    look = commands.add_parser(
        "doctor",
        help="say what would stop or slow a run here, and the remedy",
        description="Look at this machine, Spark, the warehouse and the checkpoints. Exit status 0: no run would be "
        "refused; 2: one would be, by the machine or the settings; 3: by a table or a checkpoint.",
    )
    look.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    look.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as for run")
    look.add_argument("--json", action="store_true", dest="as_json", help="one JSON object instead of lines")

    tell = commands.add_parser(
        "explain",
        help="say what came of a query and an item, number by number, and why",
        description="Texts, tokens, logit, terms, neighbours, and why the pair was or was not scored, ranked and "
        "published. On stdout only; exit status 3: the query or the item is not known.",
    )
    tell.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    tell.add_argument("--query", required=True, metavar="TEXT", help="as typed; it gets into no log and no statement")
    tell.add_argument("--item", required=True, metavar="ID", help="the shop's own id")
    tell.add_argument("--locale", metavar="L", help="the query's; default: the item's")
    tell.add_argument("--variant", default="main", metavar="V", help="the ranking to explain; default: main")
    tell.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as for run")
    tell.add_argument("--json", action="store_true", dest="as_json", help="one JSON object instead of lines")

    models = commands.add_parser(
        "models",
        help="list the checkpoints with their figures",
        description="Every checkpoint in the models folder, by its card. Starts no Spark. Exit status 3: one of them "
        "cannot be used.",
    )
    models.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    models.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as for run")
    models.add_argument("--verify", action="store_true", help="read every file, as a run does before it uses one")
    models.add_argument("--json", action="store_true", dest="as_json", help="one JSON object instead of a table")

    two = commands.add_parser(
        "compare",
        help="say which of two checkpoints orders judged items better, by slice",
        description="Run compare_checkpoints and print the figures of both, and by how much B is better, with "
        "intervals. What the two have not scored yet is scored.",
    )
    two.add_argument("a", metavar="A", help="a checkpoint")
    two.add_argument("b", metavar="B", help="another one")
    two.add_argument("--judgments", required=True, metavar="SET", help="the judgment set")
    two.add_argument("--split", metavar="NAME", help="the split of the queries; default: the settings'")
    two.add_argument("--side", choices=("train", "validation", "test"), help="its side; default: the settings'")
    two.add_argument("--run-id", required=True, metavar="ID", help="names the run; given again, it is done once")
    launch.add_plan_arguments(two)
    two.add_argument("--json", action="store_true", dest="as_json", help="one JSON object instead of a table")

    show = commands.add_parser("demo", help="run the main jobs on the sample shop and show what came out")
    show.add_argument("--conf", type=Path, default=Path("conf/demo.yaml"), metavar="FILE", help="settings")
    show.add_argument("--run-id", default="demo", metavar="ID", help="names the runs; give another to run them anew")
    show.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as for run")

    whole = commands.add_parser(
        "benchmark",
        help="run the jobs of relevance that a settings file has a section for, and print the figures",
        description="Run the jobs of a settings file in one Spark session, in the order in which they need each other, "
        "and print the figures of evaluate_rankings. Given again with the same run_id, it goes on where it ended.",
    )
    whole.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/esci.yaml")
    whole.add_argument("--run-id", required=True, metavar="ID", help="names the runs; give another to run them anew")
    launch.add_as_of(whole)
    whole.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as for run")

    asked, unknown = parser.parse_known_args(arguments)
    if unknown:
        # Behind `explain` they are words of a query without quotes, which argparse would repeat.
        what = "put quotes around the query" if asked.command == "explain" else " ".join(unknown)
        parser.error(f"unrecognized arguments: {what}")
    if asked.command in ("run", "maintain"):
        launch.check_arguments(parser, asked)
    if asked.command == "run":
        return launch.launch(pipeline(asked.job), asked)
    if asked.command == "plan":
        return launch.show_plan(pipeline(asked.job), asked, asked.save, asked.as_json)
    if asked.command in ("rollback", "hold", "release"):
        return holds.show(asked.command, asked)
    if asked.command == "maintain":
        return launch.launch(pipeline("maintain"), asked)
    if asked.command == "config":
        sys.stdout.write(config.template(asked.job, pipeline(asked.job).Config))
        return 0
    if asked.command == "doctor":
        return doctor.show(asked.conf, asked.overrides, asked.as_json, {job: pipeline(job) for job in launch.jobs()})
    if asked.command == "models":
        return model_list.show(asked.conf, asked.overrides, asked.verify, asked.as_json)
    if asked.command == "compare":
        return compare.show(pipeline("compare_checkpoints"), asked)
    if asked.command == "explain":
        pair = {"query_text": asked.query, "item_id": asked.item, "locale": asked.locale, "variant": asked.variant}
        pipelines = {job: pipeline(job) for job in why.JOBS}
        return explain.show(asked.conf, asked.overrides, pair, asked.as_json, pipelines)
    if asked.command == "benchmark":
        pipelines = {job: pipeline(job) for job in benchmark.JOBS}
        return benchmark.show(asked.conf, asked.run_id, asked.overrides, asked.as_of, pipelines)
    return demo.show(asked.conf, asked.run_id, asked.overrides, {job: pipeline(job) for job in demo.ALL_JOBS})


def _add_hold_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", required=True, metavar="NAME", help="the variant of rankings")
    given_again = "names this in the tables; a rollback given again is done once"
    parser.add_argument("--run-id", required=True, metavar="ID", help=given_again)
    parser.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as for run")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of what goes to stderr")


def pipeline(job: str) -> Any:
    """The module of a job."""
    return importlib.import_module(f"ecomspark.pipelines.{job}")


if __name__ == "__main__":
    sys.exit(main())
