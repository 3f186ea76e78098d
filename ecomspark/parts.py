"""Long work in parts: ranges of a table's layout with about a stated number of rows, and how far the work is."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """The rows at the places `first` to `last`, both included; how many they are."""

    first: int
    last: int
    count: int


def cut(counts: Iterable[tuple[int, int]], most: int) -> list[Part]:
    """Parts of at most `most` rows, in the order of their places; a place that has more is a part alone.

    `counts`: (place, rows there).

    >>> cut([(3, 2), (1, 2), (7, 5), (8, 1)], most=4)
    [Part(first=1, last=3, count=4), Part(first=7, last=7, count=5), Part(first=8, last=8, count=1)]
    """
    parts: list[Part] = []
    for place, count in sorted(counts):
        last = parts[-1] if parts else None
        if last is not None and last.count + count <= most:
            parts[-1] = Part(last.first, place, last.count + count)
        else:
            parts.append(Part(place, place, count))
    return parts


def told(parts: list[Part], what: str) -> Iterator[tuple[Part, str]]:
    """Each part with a sentence on what comes before it: how many of how many, at what rate, and the time left."""
    whole, start, done = sum(part.count for part in parts), time.monotonic(), 0
    for number, part in enumerate(parts, 1):
        said = f"part {number} of {len(parts)}: {done:,} of {whole:,} {what} done"
        took = time.monotonic() - start
        if done:
            left = (whole - done) * took / done
            said += f", {done / took:,.0f} a second, {_spelled(left)} left"
        yield part, said
        done += part.count


def _spelled(seconds: float) -> str:
    """
    >>> _spelled(42), _spelled(150), _spelled(9000)
    ('42 s', '2.5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
