"""The scoring engine beside what people would otherwise use, on one machine in one run.

    make bench OUT=bench.json

Writes a JSON list of {figure, value, must, holds, spread} to OUT and a table to stdout. What is compared is run in turn,
warm, several times; a figure is the median of the ratios within a turn, its spread the least and the greatest of them.
Rows: `mix.py`. Model: all-MiniLM-L6-v2's encoder with a head (seeded; speed does not depend on its weights), and for
what types cost in NDCG one that is trained here on the sample (three minutes the first time, then kept in .bench/).
Takes some 25 minutes; `--turns 1 --rows 200` for a look.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests")]

# One thread a process, as Spark gives a task of one core; before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import models_only  # noqa: E402
from figures import Figure, as_table, judged  # noqa: E402
from mix import pairs  # noqa: E402


class Session:
    """A Spark session in a process of its own: `ask` runs a case there."""

    def __init__(self, folder: Path, slots: int, *settings: str) -> None:
        self.slots = slots
        log = (folder / f"session-{slots}.log").open("a")
        command = [sys.executable, str(HERE / "session.py"), f"local[{slots}]", str(folder), *settings]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self._answer()

    def ask(self, case: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin
        print(json.dumps({"case": case, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a session of {self.slots} slots ended early; its log is in the bench folder")
        return json.loads(line)  # type: ignore[no-any-return]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def in_turns(turns: int, sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each side, run one after the other, every second turn in the other order. A first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            seconds = sides[name]()
            if turn:
                taken[name].append(seconds)
            say(f"turn {turn} of {turns}{'' if turn else ' (warm-up)'}: {name} {seconds:.1f} s")
    return taken


def faster(taken: dict[str, list[float]], peer: str, ours: str = "ours") -> list[float]:
    return [theirs / mine for theirs, mine in zip(taken[peer], taken[ours], strict=True)]


def best_batch_size(one: Session, case: str, rows: int, sizes: Sequence[int]) -> int:
    """A peer's best batch size, found on fewer rows: we want to beat its best."""
    seconds: dict[int, float] = {}
    one.ask(case, kind="mix", rows=rows, tasks=1, batch_size=sizes[0])
    for size in sizes:
        seconds[size] = one.ask(case, kind="mix", rows=rows, tasks=1, batch_size=size)["seconds"]
    say(f"{case}: seconds by batch size { ({size: round(s, 1) for size, s in seconds.items()}) }")
    return min(seconds, key=lambda size: seconds[size])


def one_slot(one: Session, folder: Path, rows: int, turns: int) -> list[Figure]:
    loops, usual = (models_only.loops(folder, rows, is_onednn) for is_onednn in (True, False))
    few = max(100, rows // 4)
    documented = 100
    udf_best = best_batch_size(one, "predict_batch_udf", few, (8, 16, 32))
    predict_best = best_batch_size(one, "cross_encoder_predict", few, (8, 16, 32))
    common = {"kind": "mix", "rows": rows, "tasks": 1}
    taken = in_turns(turns, {
        "ours": lambda: one.ask("score", **common)["seconds"],
        "loop, packed": lambda: loops["packed"]()[0],
        "loop, padded": lambda: loops["padded"]()[0],
        "loop, torch's linear layers": lambda: usual["packed"]()[0],
        "predict_batch_udf": lambda: one.ask("predict_batch_udf", **common, batch_size=documented)["seconds"],
        "predict_batch_udf, best": lambda: one.ask("predict_batch_udf", **common, batch_size=udf_best)["seconds"],
        "CrossEncoder.predict": lambda: one.ask("cross_encoder_predict", **common, batch_size=predict_best)["seconds"],
    })  # fmt: skip
    limit = min(("loop, packed", "loop, padded"), key=lambda name: statistics.median(taken[name]))
    one.ask("logits", **common)
    apart = models_only.apart_from_reference(folder, rows)
    pace = rows / statistics.median(taken["ours"])
    short = in_turns(turns, {
        "ours": lambda: one.ask("score", kind="short", rows=rows, tasks=1)["seconds"],
        "CrossEncoder.predict": lambda: one.ask(
            "cross_encoder_predict", kind="short", rows=rows, tasks=1, batch_size=predict_best)["seconds"],
    })  # fmt: skip
    return [
        judged(f"against the hand-tuned loop ({limit})", faster(taken, limit), ">= 0.85"),
        judged("against the packed loop with torch's own linear layers", faster(taken, "loop, torch's linear layers")),
        judged(f"against predict_batch_udf as documented (batches of {documented})",
               faster(taken, "predict_batch_udf"), ">= 2.3"),
        judged(f"against predict_batch_udf at its best (batches of {udf_best})", faster(taken, "predict_batch_udf, best")),
        judged(f"against CrossEncoder.predict (batches of {predict_best})",
               faster(taken, "CrossEncoder.predict"), ">= 1.25"),
        judged("short titles, against CrossEncoder.predict", faster(short, "CrossEncoder.predict")),
        judged("pairs per second, one slot", [rows / seconds for seconds in taken["ours"]]),
        judged("hours for a million pairs, one slot", [1e6 / pace / 3600]),
        judged("greatest score difference from the padded fp32 reference", [apart], "<= 1e-5"),
    ]  # fmt: skip


def embeddings(one: Session, rows: int, turns: int) -> list[Figure]:
    best = best_batch_size(one, "encode", max(100, rows // 4), (8, 16, 32))
    common = {"kind": "mix", "rows": rows, "tasks": 1}
    taken = in_turns(turns, {
        "ours": lambda: one.ask("embed", **common)["seconds"],
        "encode": lambda: one.ask("encode", **common, batch_size=best)["seconds"],
    })  # fmt: skip
    return [
        judged(f"embeddings against SentenceTransformer.encode (batches of {best})", faster(taken, "encode"), ">= 1.2")
    ]


def plumbing(one: Session, two: Session, rows: int, turns: int) -> list[Figure]:
    count = 20_000
    cpu: dict[str, list[float]] = {"arrow": [], "lists": []}
    warm_up = 10  # the JVM compiles for some turns: of CPU that counts, too
    for turn in range(1 - warm_up, turns + 1):
        for name, case in (("arrow", "vectors_by_arrow"), ("lists", "vectors_by_lists")):
            seconds = one.ask(case, rows=count)["cpu_seconds"]
            if turn > 0:
                cpu[name].append(seconds)
    pace = []
    for turn in range(1 - warm_up, turns + 1):
        said = two.ask("plumbing", rows=rows, name=f"turn-{turn}-{os.getpid()}")
        assert said["rows"] == rows, said
        if turn > 0:
            pace.append(said["rows"] / said["seconds"] / said["slots"])
    ratios = [mine / theirs for mine, theirs in zip(cpu["arrow"], cpu["lists"], strict=True)]
    return [
        judged("CPU of getting vectors of 384 out, against pandas lists", ratios, "<= 0.3"),
        judged("CPU microseconds a row of it", [1e6 * seconds / count for seconds in cpu["arrow"]]),
        judged(f"plumbing of {rows:,} pairs, pairs per second and core", pace, ">= 20000"),
    ]


def slots(one: Session, two: Session, rows: int, turns: int) -> list[Figure]:
    """Eight tasks a slot; `rows` a slot."""
    taken = in_turns(turns, {
        "ours": lambda: two.ask("score", kind="mix", rows=2 * rows, tasks=16)["seconds"],
        "one slot": lambda: one.ask("score", kind="mix", rows=rows, tasks=8)["seconds"],
    })  # fmt: skip
    minutes = statistics.median(taken["one slot"]) / 60
    ratios = [2 * ratio for ratio in faster(taken, "one slot")]
    return [judged(f"two slots against one, eight tasks a slot, {minutes:.1f} minutes of work", ratios, ">= 1.6")]


def loads(folder: Path) -> list[Figure]:
    fresh = Session(folder, 2)
    said = fresh.ask("loads", rows=1_280, tasks=64)
    fresh.end()
    assert said["rows"] == 1_280, said
    return [judged("model loads with 2 slots, 64 partitions, a filter behind the score", [said["loads"]], "= 2")]


def daemon(folder: Path, turns: int) -> list[Figure]:
    """Memory of four workers that scored, with torch imported before the fork against without."""
    ratios, per_worker = [], []
    for _ in range(turns):
        held = {}
        for name, settings in (("without", []), ("with", ["spark.python.daemon.module=ecomspark.daemon"])):
            session = Session(folder, 4, "spark.python.factory.idleWorkerMaxPoolSize=4", *settings)
            said = session.ask("memory", rows=160, tasks=16)
            session.end()
            assert said["loads"] == 4, said
            held[name] = said["bytes"]
        say(f"four workers: {held['without'] / 2**20:.0f} MiB without, {held['with'] / 2**20:.0f} MiB with")
        ratios.append(held["with"] / held["without"])
        per_worker.append(held["with"] / 4 / 2**20)
    return [
        judged("four slots with the pre-forked daemon: memory against without", ratios, "<= 0.5"),
        judged("MiB a worker with it, the daemon's own included", per_worker),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="kept between runs: rows, models, tables")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=480, help="pairs of a turn on one slot")
    parser.add_argument(
        "--only", nargs="*", default=[], help="parts: one embeddings plumbing slots loads daemon models"
    )
    asked = parser.parse_args()
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["ECOMSPARK_CACHE"] = str(folder / "cache")
    shutil.rmtree(folder / "plumbing", ignore_errors=True)
    models_only.make_models(folder)
    minute = 4_000  # pairs of a slot: more than a minute of work on the machine this was written on
    for kind in ("mix", "short"):
        pairs(max(2 * minute, 20_000), kind).to_parquet(folder / f"{kind}.parquet")
    one, two = Session(folder, 1), Session(folder, 2)
    parts: dict[str, Callable[[], list[Figure]]] = {
        "one": lambda: one_slot(one, folder, asked.rows, asked.turns),
        "embeddings": lambda: embeddings(one, asked.rows, asked.turns),
        "plumbing": lambda: plumbing(one, two, 200_000, asked.turns),
        "slots": lambda: slots(one, two, minute, asked.turns),
        "models": lambda: [judged(*figure) for figure in models_only.figures(folder, asked.rows, asked.turns)],
        "loads": lambda: loads(folder),
        "daemon": lambda: daemon(folder, 1),
    }
    found: list[Figure] = []
    for name, measure in parts.items():
        if not asked.only or name in asked.only:
            say(f"measuring: {name}")
            measured = measure()
            say(f"{name}:\n{as_table(measured)}")
            found += measured
            asked.out.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n")
        if name == "slots":
            one.end()
            two.end()
    print(as_table(found))
    return 0 if all(figure.holds is not False for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
