"""What changed, since a run, in the tables that tell of shoppers: the search that the jobs on behaviour share."""

from collections.abc import Mapping

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.features.consents import consenting, same_people
from ecomspark.ledger import Watermark
from ecomspark.runs import Run
from ecomspark.schemas import CONSENTS, SHOPPER_LINKS, Table
from ecomspark.tables import Snapshot


def allowed_now(current: Run, purpose: str) -> DataFrame:
    """Whose behaviour a run may use, as `consenting` gives it: who consents both by what the run has pinned and now. A
    run that goes on with versions of days ago, or by a saved plan, must not bring back whom `withdraw_consents` has
    taken away since."""
    pinned = consenting(current.read_if_there(CONSENTS), current.read_if_there(SHOPPER_LINKS), purpose)
    newest = {table: tables.snapshot(current.warehouse, table) for table in (CONSENTS, SHOPPER_LINKS)}
    if all(at == current.inputs[table.name] for table, at in newest.items()):
        return pinned
    consents, links = (tables.read(current.warehouse, table, at) for table, at in newest.items())
    return pinned.join(consenting(consents, links, purpose), on=["shopper_id", "person_id"], how="left_semi")


def changes_of(current: Run, since: Watermark, columns: Mapping[Table, tuple[str, ...]]) -> dict[str, DataFrame] | None:
    """What changed in each of some tables that moved since a watermark; see `tables.changes`. None when that cannot be
    known of one of them. A table that was not there, and is not there, has not moved; of one that came all is new."""
    changed = {}
    for table, of_table in columns.items():
        read, now = since.inputs.get(table.name), current.inputs[table.name]
        if read == now:
            continue
        rows = current.between(table, read or (now and Snapshot(now.table_id, 0)), now, of_table)
        if rows is None:
            return None
        changed[table.name] = rows
    return changed


def is_as_left(current: Run, table: Table, since: Watermark, but_for_removed: bool = False) -> bool:
    """Whether the rows of a table that the job publishes are still as the run of a watermark left them. They are not
    when a run published and died, whatever its settings or its day were. `but_for_removed`: rows that are gone since do
    not count, for a job that makes anew what is not there."""
    read, now = since.inputs.get(table.name), current.inputs[table.name]
    if read is None or now is None or read.table_id != now.table_id:
        return False
    left = Snapshot(now.table_id, since.left.get(table.name, read.version))
    if left == now:
        return True
    strays = current.between(table, left, now, ("changed_by",))
    return strays is not None and (strays.where("new IS NOT NULL") if but_for_removed else strays).isEmpty()


def whose_standing_changed(current: Run, changed: Mapping[str, DataFrame], purpose: str) -> DataFrame | None:
    """(shopper_id) of the ids whose consent to a purpose or whose links changed, and of all that are one person with
    them. None when a link is gone: who was one person with whom can then not be known."""
    none = current.read_if_there(CONSENTS).select("shopper_id").limit(0)
    said = changed.get(CONSENTS.name)
    ids = none if said is None else said.where(F.col("purpose") == purpose).select("shopper_id")
    linked = changed.get(SHOPPER_LINKS.name)
    if linked is not None:
        if not linked.where("new IS NULL").isEmpty():
            return None
        of_links = linked.select(F.explode(F.array("shopper_id", "other_id")).alias("shopper_id"))
        ids = ids.unionByName(of_links)
    return current.settle(same_people(ids, current.read_if_there(SHOPPER_LINKS)))
