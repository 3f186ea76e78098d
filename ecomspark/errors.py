"""What can stop a run, each with the exit status that a scheduler sees. Messages: place, expectation, finding, remedy.

No message carries a row's text, a query or a shopper id: they end up in logs that outlive the tables.
"""

import traceback
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
    """Data, a table or a checkpoint is not what was declared; nothing was published."""

    status = 3


class CheckpointError(ContractError):
    """A model folder is incomplete, altered, or not what its card says."""


class LeaseTaken(EcomsparkError):  # noqa: N818 - it is not an error of anybody's: try later
    """Another run is publishing to the same table."""

    status = 4


class NewerPublished(EcomsparkError):  # noqa: N818 - likewise
    """Something newer than this run's inputs is published already."""

    status = 5


def way(error: BaseException) -> str:
    """The lines of ours that led to an error, outermost first, and the line that raised it: all but its message,
    which may hold a row's text when it is not one of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ecomspark" in frame.filename or frame is frames[-1]]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in ours)
