"""The figures that need ../shared/data, as a JSON list of {figure, value, must, holds, command}.

    make figures OUT=figures.json [ONLY="recipe full same chinese shoppers"]

Models that were trained before are found in the folder that is named and not trained again, so a run that was cut
short goes on; take the folder away to measure anew. In the background: four to six hours on two cores.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chances
import chinese
import home_depot
import personal
import retrieval_home_depot
import sequences
import training
from figures import judged

PARTS = ("recipe", "full", "same", "chinese", "shoppers")


def of_chinese(folder: Path) -> Iterator[tuple[str, float, str]]:
    made = folder / "chinese"
    shutil.rmtree(made, ignore_errors=True)  # a run that was cut short begins anew
    made.mkdir()
    for one in chinese.figures(made, lambda said: print(said, file=sys.stderr, flush=True)):
        yield one["figure"], one["value"], one["must"]


def of_shoppers(folder: Path) -> Iterator[tuple[str, float, str]]:
    """Retrieval by meaning, what comes next, personal rankings, and chances."""
    for part in (retrieval_home_depot, sequences, personal, chances):
        yield from part.figures(folder)


def of_split(folder: Path) -> Iterator[tuple[str, float, str]]:
    """What was dropped for nearly equalling a test query: counted before anything is trained."""
    for row in home_depot.dropped().itertuples():
        name = f"split: {row.side} queries dropped that nearly equal a {row.near_side} query by {row.rule}"
        yield name, float(row.queries), ""
    for side, of in home_depot.pairs().groupby("side"):
        yield f"split: {side} pairs", float(len(of)), ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ecomspark-figures"), help="keeps models and scores")
    asked = parser.parse_args()
    if not home_depot.JUDGMENTS.exists():
        print(f"{home_depot.JUDGMENTS} is not there: nothing to measure", file=sys.stderr)
        return 2
    asked.folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Path], Iterator[tuple[str, float, str]]]] = {
        "recipe": partial(training.recipe_figures, beside=[training.WHOLE] if "full" in asked.only else []),
        "full": training.full_figures,
        "same": training.same_figures,
        "chinese": of_chinese,
        "shoppers": of_shoppers,
    }
    found: list[dict[str, Any]] = []
    for part in asked.only:
        steps = [of_split, makers[part]] if part == "recipe" else [makers[part]]
        for step in steps:
            for name, value, must in step(asked.folder):
                one = judged(name, [value], must)
                command = f"make figures OUT=figures.json ONLY={part}"
                kept = {"figure": name, "value": round(one.value, 6), "must": must, "holds": one.holds}
                found.append({**kept, "command": command})
                print(
                    f"{name}: {one.value:.4g}" + (f" ({must}: {one.holds})" if must else ""),
                    file=sys.stderr,
                    flush=True,
                )
                asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["holds"] is not False or one["must"].startswith("aim") for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
