"""What can stop a run, each with the exit status that a scheduler sees. Messages: place, expectation, finding, remedy.

No message carries a row's text, a query or a shopper id: they end up in logs that outlive the tables.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PUBLISHED = 0  # or nothing to do, or replayed
UNEXPECTED = 1
TERMINATED = 143


class EcomsparkError(Exception):
    """A stop that was foreseen. `status` is the exit status of the run."""

    status = UNEXPECTED


class ConfigError(EcomsparkError):
    """Settings or usage are wrong; nothing was started."""

    status = 2


class ContractError(EcomsparkError):
    """Data, a table or a checkpoint is not what was declared; what had landed stays, nothing more is published."""

    status = 3


class CheckpointError(ContractError):
    """A model folder is incomplete, altered, or not what its card says."""


class LeaseTaken(EcomsparkError):  # noqa: N818 - it is not an error of anybody's
    """Another run may publish to the table now."""

    status = 4


class OnHold(EcomsparkError):  # noqa: N818 - somebody wants it so
    """Publishing is stopped until it is released."""

    status = 6


class NewerPublished(EcomsparkError):  # noqa: N818 - it is not an error of anybody's
    """Something newer than this run's inputs is published already; or another writer published at the same moment."""

    status = 5


NOTE = "by way of "  # begins the note that an error of ours carries where its traceback was let go


def way(error: BaseException) -> str:
    """The lines of ours that led to an error, outermost first, and the line that raised it: all but its message,
    which may hold a row's text when it is not one of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ecomspark" in frame.filename or frame is frames[-1]]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in ours)


@contextmanager
def without_values() -> Iterator[None]:
    """In a Python worker: let an error leave by its class and the way to it. Spark puts the message of whatever a
    worker raises into its log, and a library's message may quote the text that it failed on."""
    try:
        yield
    except Exception as error:
        notes = [note.removeprefix(NOTE) for note in getattr(error, "__notes__", []) if note.startswith(NOTE)]
        raise RuntimeError(f"{type(error).__name__}, by way of {' > '.join([*notes, way(error)])}") from None
