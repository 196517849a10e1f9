"""Table 5: what a model costs at inference, beside its retrieval, and what distillation saves against the teacher.

FLOPs are 2 per multiply-add. Latency, parameter cut and speed-up are those of the image tower, as in the design's table.
"""

from __future__ import annotations

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Table
from cmapkd.paper.context import TEACHER, PaperContext
from cmapkd.paper.metrics import PERCENT, POSITIVE, Metrics
from cmapkd.paper.tables.common import conditions, rows_of

NAME = "table5"
COSTS = {  # column -> (heading that spans, heading, key of the metric, scale)
    "image_parameters": ("params (M)", "image", "image_parameters", 1e-6),
    "total_parameters": ("params (M)", "total", "total_parameters", 1e-6),
    "image_flops": ("FLOPs (G)", "image", "image_flops", 1e-9),
    "total_flops": ("FLOPs (G)", "total", "total_flops", 1e-9),
    "latency_batch1": ("ms/image", "b = 1", "latency_ms_batch1", 1.0),
    "latency_batch32": ("ms/image", "b = 32", "latency_ms_batch32", 1.0),
}


def build(context: PaperContext, metrics: Metrics) -> Table:
    """Teacher first, then the students. Parameters in 1e6, FLOPs in 1e9, latency in ms per image, R@1 and cut in percent."""
    if not context.retrieval:
        raise UserError(
            key="evaluation.retrieval", value=[], reason=f"{NAME} needs a test split", fix="name one, or leave the table out"
        )
    split = context.retrieval[0]
    rows = rows_of(context, context.students())
    cells: dict[str, dict[str, Cell]] = {row.key: {} for row in rows}
    for row in cells:
        for column, (_, _, key, scale) in COSTS.items():
            cells[row][column] = metrics.mean(
                row, ("efficiency", key), f"{NAME} / {row} / {column}", scale=scale, bounds=POSITIVE
            )
        cells[row]["i2t_r1"] = metrics.mean(
            row, ("retrieval", split, "all", "i2t_r1"), f"{NAME} / {row} / i2t_r1", bounds=PERCENT
        )
    devices = {row: _devices(context, metrics, row) for row in cells}
    for run in context.students():
        row = run.name
        cells[row]["parameter_cut"] = metrics.against_teacher(
            row,
            ("efficiency", "image_parameters"),
            f"{NAME} / {row} / parameter_cut",
            lambda teacher, student: 100 * (1 - student / teacher),
            "100 (1 - student / teacher), mean over seeds",
            POSITIVE,
        )
        if devices[row] == devices[TEACHER] and len(devices[row]) == 1:
            cells[row]["speed_up"] = metrics.against_teacher(
                row,
                ("efficiency", "latency_ms_batch1"),
                f"{NAME} / {row} / speed_up",
                lambda teacher, student: teacher / student,
                "teacher / student, mean over seeds",
                POSITIVE,
            )
    costs = [
        Column(
            key=key,
            header=header,
            group=group,
            direction="down",
            decimals=None,
            deviation=key.startswith("latency"),
            ranked=False,
        )
        for key, (group, header, _, _) in COSTS.items()
    ]
    results = [
        Column(key="i2t_r1", header="R@1", ranked=False),  # tested in table 2
        Column(key="parameter_cut", header="cut (%)", group="vs. teacher", deviation=False, ranked=False, optional=True),
        Column(
            key="speed_up", header="speed-up", group="vs. teacher", decimals=2, deviation=False, ranked=False, optional=True
        ),
    ]
    columns = (*costs, *results)
    label = context.label(split, "retrieval")
    caption = (
        "Cost at inference; FLOPs count 2 per multiply-add. Latency (b: batch size), parameter cut and speed-up (b = 1) are "
        f"those of the image tower. {_device_sentence(devices)} R@1: image → text, {label}. {conditions(context)}"
    )
    return Table(NAME, "Efficiency", caption, rows, (Panel("", columns),), cells | {CAPTION: {}})


def _devices(context: PaperContext, metrics: Metrics, row: str) -> tuple[str, ...]:
    cell = f"{NAME} / {row} / latency_batch1"
    return tuple(sorted({metrics.text(row, seed, ("efficiency", "device"), cell) for seed in context.seeds_of(row)}))


def _device_sentence(devices: dict[str, tuple[str, ...]]) -> str:
    names = sorted({name for found in devices.values() for name in found})
    if len(names) == 1:
        return f"Latency on {names[0]}."
    listed = "; ".join(f"{row}: {', '.join(found)}" for row, found in devices.items())
    return (
        f"Latencies were measured on different devices and cannot be compared ({listed}); no speed-up is given across devices."
    )
