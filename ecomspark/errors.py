"""What can stop a run, each with the exit status that a scheduler sees. Messages: place, expectation, finding, remedy.

No message carries a row's text, a query or a shopper id: they end up in logs that outlive the tables.
"""

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
