"""Registry of tables. A table is one module here, with ``build(context, metrics) -> Table``, and one line below.

The modules are imported when a table is built, so the names are known (to the configuration) at no cost.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cmapkd.errors import UserError, nearest

if TYPE_CHECKING:
    from cmapkd.paper.cells import Table
    from cmapkd.paper.context import PaperContext
    from cmapkd.paper.metrics import Metrics

TABLES = {
    "table1": "cmapkd.paper.tables.schedule",
    "table2": "cmapkd.paper.tables.retrieval",
    "table3": "cmapkd.paper.tables.vqa_zeroshot",
    "table4": "cmapkd.paper.tables.ablation",
    "table5": "cmapkd.paper.tables.efficiency",
    "glance": "cmapkd.paper.tables.glance",
    "significance": "cmapkd.paper.tables.significance",
    "planned": "cmapkd.paper.tables.planned",
    "levels": "cmapkd.paper.tables.levels",
    "alsn": "cmapkd.paper.tables.alsn",
    "tuned": "cmapkd.paper.tables.tuned",
}


def compute_table(name: str, context: PaperContext, metrics: Metrics) -> Table:
    """The table of that name from the experiment's metric files."""
    if name not in TABLES:
        raise UserError(key="table", value=name, reason="no such table", fix=nearest(name, list(TABLES)))
    table: Table = import_module(TABLES[name]).build(context, metrics)
    return table
