"""The Online Retail log (UCI, CC0): invoice lines of a British giftware shop, as items and interactions.

The log has no catalogue. An item is what its invoice lines say of it: the title most often printed for its code, the
median price asked, units sold less units returned, the day of its first sale. Stock and ratings are not known.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.schemas import Table, column

LINES = Table(
    "online_retail_lines",
    one_row="one line of an invoice",
    kind="log",
    key=("invoice_id", "stock_code", "line"),
    columns=(
        column("invoice_id", "string", "starts with C when it cancels: its lines are returns"),
        column("stock_code", "string", "code of the item, in either case"),
        column("line", "bigint", "1 for the first of the code's lines on the invoice"),
        column("description", "string", "title, or a note of the warehouse", null="none"),
        column("quantity", "bigint", "units, negative for returns"),
        column("invoiced_at", "timestamp", "when, UTC"),
        column("unit_price", "decimal(18,4)", "price of one, pounds"),
        column("shopper_id", "string", "pseudonym of who bought it", null="not known, or nobody's is taken over"),
    ),
    bytes_a_row=60,
)

COLUMNS = {
    "invoice_id": "InvoiceNo",
    "stock_code": "StockCode",
    "line": "line",
    "description": "Description",
    "quantity": "Quantity",
    "invoiced_at": "InvoiceDate",
    "unit_price": "UnitPrice",
}

# Not among COLUMNS: who the shopper was is taken over only where there is a key to make pseudonyms with. The log writes
# 17850.0.
SHOPPER = {"from": "CustomerID", "cast": "bigint"}

LOCALE, CURRENCY = "uk", "GBP"

_IS_RETURN = "startswith(invoice_id, 'C')"

# Postage, bank charges, manual corrections and the like have codes without a number of four digits.
RULES = {
    "not_goods": r"NOT upper(stock_code) RLIKE '\\d{4}|^DCGS'",
    "quantity_zero": "quantity = 0",
    "stock_adjustment": f"quantity < 0 AND NOT {_IS_RETURN}",
    "no_price": "unit_price <= 0",
}


def numbered(lines: DataFrame) -> DataFrame:
    """The log with `line`: the place of a line among those of its code on its invoice. Equal lines may swap places."""
    of_code = Window.partitionBy("InvoiceNo", "StockCode")
    return lines.withColumn("line", F.row_number().over(of_code.orderBy("Quantity", "UnitPrice", "Description")))


def interactions_of(lines: DataFrame) -> DataFrame:
    """Usable lines as purchases and returns."""
    unknown = {"source": "string", "source_query_id": "string", "position": "int",
               "rating": "double", "dwell_seconds": "double"}  # fmt: skip
    return lines.select(
        F.concat_ws("-", "invoice_id", "stock_code", F.col("line").cast("string")).alias("interaction_id"),
        F.when(F.expr(_IS_RETURN), "return").otherwise("purchase").alias("kind"),
        _item_id().alias("item_id"),
        F.col("invoiced_at").alias("occurred_at"),
        "shopper_id",
        F.abs("quantity").alias("quantity"),
        F.col("unit_price").alias("price"),
        F.lit(CURRENCY).alias("currency"),
        F.col("invoice_id").alias("basket_id"),
        *(F.lit(None).cast(kind).alias(name) for name, kind in unknown.items()),
    )


def items_of(lines: DataFrame) -> DataFrame:
    """Items that were sold at least once, from usable lines; without `source_digest` and `changed_by`."""
    is_sale = ~F.expr(_IS_RETURN)
    facts = lines.groupBy(_item_id().alias("item_id")).agg(
        F.percentile(F.when(is_sale, F.col("unit_price")), F.lit(0.5)).cast("decimal(18,4)").alias("price"),
        F.greatest(F.sum("quantity"), F.lit(0)).alias("sold_count"),
        F.min(F.when(is_sale, F.col("invoiced_at"))).alias("listed_at"),
    )
    most_printed = Window.partitionBy("item_id").orderBy(F.desc("count"), "title")
    titles = (
        lines.where(is_sale & F.col("description").isNotNull())
        .groupBy(_item_id().alias("item_id"), F.col("description").alias("title"))
        .count()
        .withColumn("place", F.row_number().over(most_printed))
        .where("place = 1")
    )
    unknown = {"brand": "string", "category": "string", "description": "string", "attributes": "map<string,string>",
               "rating": "double", "rating_count": "bigint", "is_in_stock": "boolean"}  # fmt: skip
    return titles.join(facts, on="item_id", how="inner").select(
        "item_id",
        F.lit(LOCALE).alias("locale"),
        "title",
        "price",
        F.lit(CURRENCY).alias("currency"),
        "sold_count",
        "listed_at",
        *(F.lit(None).cast(kind).alias(name) for name, kind in unknown.items()),
    )


def _item_id() -> Column:
    # The log writes one code in both cases: 85123A over the counter, 85123a on the web shop's invoices.
    return F.upper(F.trim("stock_code"))
