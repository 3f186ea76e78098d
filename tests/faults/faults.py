"""What must hold under faults, in full: python tests/faults/faults.py --out faults.json [--only NAME …] [--rounds N]

A JSON list of {figure, value, must, holds}, written anew after each figure, so that a run that is cut off keeps what it
found. Hours of work: in the background, with nothing else beside it. Kills only processes that it started itself.
"""

import argparse
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")])
os.environ["PYSPARK_PYTHON"] = sys.executable

import night  # noqa: E402
import worlds  # noqa: E402
from fakes import Traced  # noqa: E402
from history import random_histories  # noqa: E402
from quick import QUICK  # noqa: E402
from replayed import Played, play  # noqa: E402
from scans import Watch  # noqa: E402
from shop import Shop  # noqa: E402
from slow import Slow  # noqa: E402
from world import NO_FEED, Item, World, query_id  # noqa: E402

from ecomspark import tables, text  # noqa: E402
from ecomspark.errors import EcomsparkError, LeaseTaken  # noqa: E402
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, RANKINGS, SCORES, Table  # noqa: E402

_NIGHT = ROOT / "tests" / "faults" / "night.py"
_BUCKETS = 64
_SEED = 20261125


class Faults:
    """A session to look into tables with, a folder, and the figures so far."""

    def __init__(self, folder: Path, out: Path, rounds: int) -> None:
        from pyspark.sql import SparkSession

        flags = "--conf spark.master=local[2,4] --conf spark.sql.shuffle.partitions=2 --conf spark.sql.adaptive.enabled=false"
        flags += " --conf spark.sql.ui.retainedExecutions=300"
        os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {ROOT / 'conf/spark-local.conf'} {flags} pyspark-shell"
        self.spark = SparkSession.builder.appName("faults").getOrCreate()
        self.folder, self.out, self.rounds = folder, out, rounds
        self.figures: list[dict[str, Any]] = []
        self.undisturbed: dict[str, Any] | None = None

    def say(self, figure: str, value: Any, must: str = "", holds: bool | None = None) -> None:
        self.figures.append({"figure": figure, "value": value, "must": must, "holds": holds})
        self.out.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")
        print(f"{figure}: {value} {f'(must be {must}: {holds})' if must else ''}", flush=True)

    def base(self) -> Path:
        """The folder of a world after its first night, made once."""
        base = self.folder / "base"
        if not base.exists():
            worlds.first_night(self.spark, base)
        return base

    def copy(self, name: str) -> Path:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.base(), target)
        return target

    def look(self, folder: Path) -> dict[str, Any]:
        """What the tables of a world hold, and how they came to it since the first night."""
        world = worlds.second_night(self.spark, folder)
        self.forget()
        keys = ("variant", "query_id", "item_id")
        ranked = world.rows(RANKINGS).drop("changed_by").collect()
        scored = world.rows(SCORES).collect()
        raw = self.spark.read.format("delta").load(str(world.warehouse.path(SCORES))).count()
        moved = Counter(
            tuple(row[key] for key in keys)
            for row in world.feed(RANKINGS, self.first_version())
            if row["_change_type"] != "update_preimage"
        )
        return {
            "rankings": sorted(map(str, ranked)),
            "scores": sorted(map(str, scored)),
            "doubled": raw - len(scored),
            "moved_twice": sum(count > 1 for count in moved.values()),
            "moved": len(moved),
        }

    def expected(self) -> dict[str, Any]:
        """What the tables hold after a second night that nothing disturbed."""
        if self.undisturbed is None:
            folder = self.copy("undisturbed")
            assert self.start(folder).wait() == 0
            self.undisturbed = self.look(folder)
            assert self.undisturbed["moved"] > 0
        return self.undisturbed

    def forget(self) -> None:
        """Let go of the logs of tables that are done with: Delta keeps each for an hour."""
        self.spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # type: ignore[union-attr]

    def first_version(self) -> int:
        at = tables.snapshot(worlds.second_night(self.spark, self.base()).warehouse, RANKINGS)
        return at.version if at else 0

    def start(self, folder: Path, *more: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(_NIGHT), str(folder), "second", *more]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )


def driver(faults: Faults) -> None:
    """R8: the driver is killed at each of ten points, and the same run is started again."""
    expected = faults.expected()
    equal, tried = 0, 0
    for point in night.POINTS:
        for number in range(faults.rounds):
            folder = faults.copy("killed")
            died = faults.start(folder, "--point", point).wait()
            again = faults.start(folder).wait()
            found = faults.look(folder)
            is_equal = died == -signal.SIGKILL and again == 0 and found == expected
            equal, tried = equal + is_equal, tried + 1
            differing = [name for name, value in expected.items() if found[name] != value]
            ends = "equal" if is_equal else f"died {died}, again {again}, differs in {differing}"
            print(f"{point}, round {number + 1} of {faults.rounds}: {ends}", flush=True)
    must = len(night.POINTS) * faults.rounds
    faults.say(
        f"driver killed at {len(night.POINTS)} points, run again: equal to an undisturbed run",
        equal,
        f"= {must}",
        equal == must,
    )


def executors(faults: Faults) -> None:
    """R4: executors are killed, each time after some more batches have been scored."""
    expected = faults.expected()
    start = time.monotonic()
    calm = faults.copy("calm")
    assert faults.start(calm, "--master", "local-cluster[2,1,1024]").wait() == 0
    whole = time.monotonic() - start
    folder, killed = faults.copy("stormy"), 0
    start, seen = time.monotonic(), 0
    child = faults.start(folder, "--master", "local-cluster[2,1,1024]")

    def batches() -> int:
        return len(Traced(str(folder)).evaluated())

    before = batches()
    while child.poll() is None:
        done = batches() - before
        mine = _executors_of(child.pid)
        if mine and done > seen:
            seen = done
            os.kill(mine[0], signal.SIGKILL)
            killed += 1
        time.sleep(0.2)
    found = faults.look(folder)
    holds = child.returncode == 0 and killed > 0 and found == expected
    faults.say(
        "executors killed after progress, each time: tables equal",
        f"{killed} killed, status {child.returncode}, equal: {found == expected}",
        "equal",
        holds,
    )
    faults.say("slowdown by it", round((time.monotonic() - start) / whole, 2))


def workers(faults: Faults) -> None:
    """R5, R16: a worker hangs and is ended; slow tasks are started twice."""
    cluster = ("--master", "local-cluster[2,1,1024]")
    eager = ("spark.speculation=true", "spark.speculation.interval=50ms", "spark.speculation.multiplier=1.01",
             "spark.speculation.quantile=0.1", "spark.speculation.minTaskRuntime=10ms")  # fmt: skip
    asked = {
        "a worker hangs and is ended": ("--once", "hang", "--conf", "spark.python.worker.idleTimeoutSeconds=30"),
        "speculation on two executors": (*cluster, "--conf", *eager),
    }
    for figure, more in asked.items():
        folder = faults.copy("workers")
        status = faults.start(folder, *more).wait()
        is_equal = status == 0 and faults.look(folder) == faults.expected()
        faults.say(f"{figure}: tables equal to an undisturbed run's", is_equal, "= True", is_equal)


def disk(faults: Faults) -> None:
    """R15: the disk is full while a night runs. What it had published stays whole; with room again it goes on."""
    expected, source, room = faults.expected(), faults.base(), faults.folder / "disk"
    room.mkdir()
    size = int(subprocess.run(["du", "-sk", str(source)], capture_output=True, text=True, check=True).stdout.split()[0])
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + 64}k", "tmpfs", str(room)])
    if mounted.returncode:
        faults.say("disk full: not tried, only root may mount a small one", None)
        return
    try:
        folder = room / "shop"
        shutil.copytree(source, folder)
        full = faults.start(folder).wait()
        subprocess.run(["mount", "-o", "remount,size=1g", str(room)], check=True)
        again = faults.start(folder).wait()
        holds = full not in (0, -signal.SIGKILL) and again == 0 and faults.look(folder) == expected
        faults.say(
            "disk full, then room again: the run ended, and again: equal", f"ended {full}, {again}", "equal", holds
        )
    finally:
        subprocess.run(["umount", str(room)], check=True)


def _executors_of(ancestor: int) -> list[int]:
    """The executors that a process started, oldest first."""
    parents, executors = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if b"CoarseGrainedExecutorBackend" in (entry / "cmdline").read_bytes():
                    executors.append(int(entry.name))
            except OSError:
                continue
    return sorted(pid for pid in executors if ancestor in _ancestors(pid, parents))


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents and pid > 1:
        pid = parents[pid]
        yield pid


def writers(faults: Faults) -> None:
    """R11: two runs at once, in sessions of their own."""
    world = worlds.second_night(faults.spark, faults.copy("writers"))
    world.score("s0", as_of=worlds.SECOND)
    world.rank("r0", worlds.SECOND)
    told = right = 0
    rounds = 20 if faults.rounds >= 3 else 2
    for number in range(rounds):
        for place, item_id in enumerate(sorted(world.items)):
            world.edit(item_id, price=1.0 + (7 * number + 3 * place) % 11)
        world.publish(ITEMS)
        ends: list[str] = []

        def one(name: str, number: int = number, ends: list[str] = ends) -> None:
            mine = World(quickly(faults.spark.newSession()), world.folder, items=world.items, queries=world.queries)
            try:
                mine.rank(f"{name}{number}", worlds.SECOND)
                ends.append("published")
            except LeaseTaken:
                ends.append("told")
            except EcomsparkError as error:
                ends.append(type(error).__name__)

        threads = [threading.Thread(target=one, args=(name,)) for name in ("x", "y")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told += sorted(ends) == ["published", "told"]
        right += world.rank(f"look{number}", worlds.SECOND, full=True).status == "nothing_to_do"
    faults.say(f"two writers, {rounds} rounds: one of them told", told, f"= {rounds}", told == rounds)
    faults.say(f"two writers, {rounds} rounds: nothing lost, nothing doubled", right, f"= {rounds}", right == rounds)


def answers(faults: Faults) -> None:
    """R9: every commit of scores lands and its writer is told that it failed; then the night again, and again."""
    import ecomspark.tables.publish  # noqa: F401 - the module, not the function of its name

    module = sys.modules["ecomspark.tables.publish"]
    world = worlds.second_night(faults.spark, faults.copy("answers"))
    append: Callable[..., None] = module.append  # type: ignore[attr-defined]

    def lost(*args: Any) -> None:
        append(*args)
        raise ConnectionError("no answer")

    module.append = lost  # type: ignore[attr-defined]
    try:
        world.score("lost", as_of=worlds.SECOND)
    finally:
        module.append = append  # type: ignore[attr-defined]
    path = str(world.warehouse.path(SCORES))
    rows = faults.spark.read.format("delta").load(path).count()
    replays = 100 if faults.rounds >= 3 else 3
    for number in range(replays):
        world.score("lost" if number % 2 else f"again{number}", as_of=worlds.SECOND)
    added = faults.spark.read.format("delta").load(path).count() - rows
    doubled = rows - world.rows(SCORES).count()
    faults.say(
        f"a commit whose answer was lost, {replays} replays: rows added", added + doubled, "= 0", added + doubled == 0
    )


def feeds(faults: Faults) -> None:
    """A night whose change feed of items cannot be read, in each of four ways, beside one whose can."""
    calm = worlds.second_night(faults.spark, faults.copy("feeds"))
    calm.score("s0", as_of=worlds.SECOND)
    calm.rank("r0", worlds.SECOND)
    calm.edit("i2", title="iron teapot", price=1.0)
    del calm.items["i8"]
    found = {}
    for fault in ("", *NO_FEED):
        world = calm.copy(faults.folder / f"feed-{fault}")
        world.publish_without_feed(fault)
        world.score("after", as_of=worlds.SECOND)
        world.rank("after", worlds.SECOND)
        rankings, scores = world.rows(RANKINGS).drop("changed_by").collect(), world.rows(SCORES).collect()
        found[fault] = (sorted(map(str, rankings)), sorted(map(str, scores)))
        faults.forget()
    alike = [fault for fault in NO_FEED if found[fault] == found[""]]
    faults.say("no change feed: rankings and scores as with it", alike, f"= {list(NO_FEED)}", alike == list(NO_FEED))


def fifty(faults: Faults) -> None:
    """R20: fifty runs in a row with small changes, two a night: memory and open files of the driver."""
    world = worlds.second_night(faults.spark, faults.copy("fifty"))
    java = faults.spark.sparkContext._gateway.proc.pid  # type: ignore[union-attr]
    rounds = 25 if faults.rounds >= 3 else 6
    marks = {}
    for number in range(1, rounds + 1):
        world.edit("i2", title=f"glass teapot {number}", price=float(number))
        world.publish(ITEMS)
        today = worlds.SECOND + timedelta(days=number)
        world.score(f"n{number}", as_of=today)
        world.rank(f"n{number}", today)
        if number in (max(2, rounds // 5), rounds):
            gc.collect()
            faults.spark._jvm.System.gc()  # type: ignore[union-attr]
            runtime = faults.spark._jvm.java.lang.Runtime.getRuntime()  # type: ignore[union-attr]
            heap = runtime.totalMemory() - runtime.freeMemory()
            files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (java, os.getpid()))
            marks[number] = (heap / 2**20, _resident(os.getpid()), files)
    (first, last) = (marks[number] for number in sorted(marks))
    heap, python, files = (round(b / a, 2) for a, b in zip(first, last, strict=True))
    said = f"heap {first[0]:.0f} to {last[0]:.0f} MiB, Python {first[1]:.0f} to {last[1]:.0f} MiB, files {first[2]} to {last[2]}"
    faults.say(
        f"{2 * rounds} runs: growth of heap, Python and open files ({said})",
        [heap, python, files],
        "<= 1.25 each",
        max(heap, python, files) <= 1.25,
    )


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def share(faults: Faults) -> None:
    """One in a hundred titles changed, with a scorer that takes 5 ms a pair: the time against the whole and the least."""
    pairs = 50_000 if faults.rounds >= 3 else 5_000
    items, asked = pairs // 50, 50
    world = World(faults.spark, faults.folder / "share", buckets=16)
    world.items = {f"i{n}": Item(f"title {n}", 1.0 + n % 7) for n in range(items)}
    world.queries = {f"q{n}": f"query {n}" for n in range(asked)}
    world.publish()
    slow, seconds = Slow(0.005), {}

    def timed(name: str) -> Any:
        start = time.monotonic()
        summary = world.score(name, slow)
        seconds[name] = time.monotonic() - start
        return summary

    whole = timed("whole")
    world.edit("i0", title="another title")
    world.publish(ITEMS)
    one = timed("one")
    for n in range(1, items // 100 + 1):
        world.edit(f"i{n}", title=f"another title {n}")
    world.publish(ITEMS)
    hundredth = timed("hundredth")
    forwarded = [summary.rows["scored"] for summary in (whole, one, hundredth)]
    expected = [pairs, asked, asked * (items // 100)]
    faults.say(
        f"1 % of titles of {pairs:,} pairs: pairs forwarded (whole, one title, 1 %)",
        forwarded,
        f"= {expected}",
        forwarded == expected,
    )
    ratio = round((seconds["hundredth"] - seconds["one"]) / seconds["whole"], 4)
    said = {name: round(taken, 1) for name, taken in seconds.items()}
    faults.say(
        f"1 % of titles: time less that of one title, of the whole run's ({said})", ratio, "<= 0.03", ratio <= 0.03
    )


def growth(faults: Faults) -> None:
    """What it costs to bring a hundred changed pairs up to date as the tables grow: of one query, and of a hundred."""
    for pairs in (10_000, 100_000, 1_000_000) if faults.rounds >= 3 else (10_000, 30_000):
        count = pairs // 100
        world = World(faults.spark, faults.folder / "growth", buckets=_BUCKETS)
        world.items = {f"i{n}": Item(f"title {n}", 1.0 + n % 7) for n in range(count)}
        world.queries = {f"q{n}": f"query {n}" for n in range(count)}
        # Each query has a hundred items that stand together, so each item has a hundred queries.
        world.pairs = {(f"q{n}", f"i{(n + k) % count}") for n in range(count) for k in range(100)}
        world.publish()
        world.score("whole", Slow(0.0))
        world.rank("whole")
        for run_id, what in (("query", "one query"), ("item", "a hundred queries")):
            if run_id == "query":
                world.queries["q7"] = "another query"
            else:
                world.edit("i7", title="another title")
            world.publish(QUERIES if run_id == "query" else ITEMS)
            for job in ("score", "rank"):
                _cost(faults, world, job, run_id, f"100 pairs of {what} changed in {pairs:,}: {job}")
        shutil.rmtree(world.folder)
        faults.forget()


def _cost(faults: Faults, world: World, job: str, run_id: str, figure: str) -> None:
    """Run a job; say its time, the bytes that it read, and of each table the files of the widest reading, of all."""
    bucketed = {table.name: table for table in (CANDIDATES, SCORES, RANKINGS)}
    there = {name: _files(world, table) for name, table in bucketed.items()}
    mine = {CANDIDATES.name: query_id("q7"), RANKINGS.name: query_id("q7"), SCORES.name: text.digest("another query")}
    watch, start = Watch(faults.spark), time.monotonic()
    summary = world.score(run_id, Slow(0.0)) if job == "score" else world.rank(run_id)
    seconds = round(time.monotonic() - start, 1)
    scans = watch.scans(world.folder / "warehouse")
    read = {name: max((s.files for s in scans if s.table == name), default=0) for name in {s.table for s in scans}}
    columns = {name: sorted({c for s in scans if s.table == name for c in s.columns}) for name in bucketed}
    done = summary.rows["scored" if job == "score" else "reranked_queries"]
    value = {"seconds": seconds, "bytes": watch.bytes_read(), "done": done, "files": read, "of": there}
    if run_id == "query":  # after the run: it reads what it appended, too
        of_query = {name: _files(world, table, mine[name][0] % _BUCKETS) for name, table in bucketed.items()}
        too_many = sorted(name for name in bucketed if read.get(name, 0) > of_query[name])
        faults.say(figure, {**value, "of_query": of_query, "too_many": too_many}, "files of its buckets", not too_many)
    else:
        faults.say(figure, {**value, "columns": columns})


def _files(world: World, table: Table, bucket: int | None = None) -> int:
    rows = world.spark.read.format("delta").load(world.warehouse.path(table))
    return len((rows if bucket is None else rows.where(f"bucket = {bucket}")).inputFiles())


def histories(faults: Faults) -> None:
    """Random histories of a shop of three items and two queries, played by the real jobs, against the plain model."""
    folder = faults.folder / "histories"
    folder.mkdir()
    first_night = Played.opened(Shop(faults.spark, folder))
    count, right = 30 if faults.rounds >= 3 else 2, 0
    for number, history in enumerate(random_histories(count, _SEED)):
        place = faults.folder / f"history{number}"
        place.mkdir()
        try:
            play(first_night.copy(place), history)
            right += 1
        except Exception as error:  # the others may say more
            print(f"history {number + 1}: {history}: {type(error).__name__}: {error}", flush=True)
        print(f"{right} of {number + 1} histories so far are as the model says", flush=True)
        shutil.rmtree(place)
        faults.forget()
    faults.say(f"{count} random histories of at most 6 steps: as the model says", right, f"= {count}", right == count)


FIGURES: dict[str, Callable[[Faults], None]] = {
    f.__name__: f for f in (driver, executors, workers, disk, writers, answers, feeds, fifty, share, growth, histories)
}


_TIMED = (share, growth)


def quickly(spark: Any, is_quick: bool = True) -> Any:
    """A session in which small runs take half the time, or one as users have it."""
    for name, quick in QUICK.items():
        value = quick if is_quick else spark.sparkContext.getConf().get(name)
        if value is None:
            spark.conf.unset(name)
        else:
            spark.conf.set(name, value)
    return spark


@contextmanager
def _room() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ecomspark-faults-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="What must hold under faults.")
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rounds", type=int, default=3, help="rounds a point; fewer than 3: the short form of all")
    asked = parser.parse_args()
    with _room() as folder:
        faults = Faults(folder, asked.out, asked.rounds)
        for name in asked.only:
            print(f"-- {name}", flush=True)
            quickly(faults.spark, FIGURES[name] not in _TIMED)
            FIGURES[name](faults)
        faults.spark.stop()
    return 0 if all(figure["holds"] is not False for figure in faults.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
