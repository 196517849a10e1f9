"""Options of the paper: which tables and figures, what their data sets are called, whether planned numbers are shown."""

from __future__ import annotations

from pydantic import field_validator, model_validator

from cmapkd.config.base import Config, Field
from cmapkd.config.paths import RepositoryPath
from cmapkd.errors import nearest


class BootstrapConfig(Config):
    """How differences between runs are tested: a paired bootstrap over queries, beside the variance between seeds."""

    samples: int = Field(
        10_000, ge=100, le=1_000_000, unit="resamples", description="resamples of the test set; no p is below 2 / (samples + 1)"
    )
    seed: int = Field(0, ge=0, description="seed of the resamples")
    level: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        unit="share",
        description="level of the intervals; significant is a corrected p below 1 - level",
    )


class PaperConfig(Config):
    """What the paper holds. Nothing here changes a measurement."""

    title: str = Field(
        "Adaptive Pyramid-Based Cross-Modal Knowledge Distillation", min_length=1, description="title of `paper.pdf`"
    )
    tables: tuple[str, ...] = Field(
        ("table2", "table3", "table5"), description="tables, in the order in which the paper shows them"
    )
    appendix: tuple[str, ...] = Field((), description="tables of the appendix, in order; none of them also in `tables`")
    full_run: str = Field(
        "CMAPKD",
        description="the full method: the run that table 4 compares the ablations with; runs of other methods are baselines",
    )
    figures: tuple[str, ...] = Field(("figure3",), description="figures, in the order in which the paper shows them")
    appendix_figures: tuple[str, ...] = Field(
        (), description="figures of the appendix, in order, after its tables; none of them also in `figures`"
    )
    algorithms: tuple[str, ...] = Field((), description="algorithms, in the order in which the paper shows them")
    manuscript: RepositoryPath = Field(
        "paper/manuscript.tex",
        description="the article: a LaTeX file in the repository (or an absolute path) that uses the tables, figures and "
        "macros of the experiment; files beside it may be used by it; empty: none",
    )
    planned: bool = Field(
        False,
        description="add a table to the appendix that shows the planned numbers of `config/planned.yaml` beside the measured "
        "ones, labelled as planned; they are not results, and no other table shows them",
    )
    bootstrap: BootstrapConfig = Field(BootstrapConfig(), description="how differences are tested")
    labels: dict[str, str] = Field(
        {},
        description="what the paper calls a split: `<dataset>/<split>`, or `<task>:<dataset>/<split>` for one task "
        "(retrieval, zeroshot or vqa), to the text shown, e.g. `Emoji Scenes, unseen drawings (in place of COCO 5K)`",
    )
    weights_run: str = Field(
        "", description="run whose layer weights figure 3 shows; empty: the first run that recorded ALSN weights"
    )
    weights_samples: int = Field(100, ge=10, le=1000, unit="samples", description="samples drawn as points in figure 3")

    analysis_run: str = Field(
        "",
        description="run whose weights and levels figures 4 to 6 show; empty: `full_run`, or the first run that recorded them",
    )

    @field_validator("tables", "appendix")
    @classmethod
    def _known_tables(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from cmapkd.paper.tables import TABLES

        return _known(names, list(TABLES), "table")

    @field_validator("figures", "appendix_figures")
    @classmethod
    def _known_figures(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from cmapkd.paper.figures import FIGURES

        return _known(names, list(FIGURES), "figure")

    @field_validator("algorithms")
    @classmethod
    def _known_algorithms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from cmapkd.paper.algorithms import ALGORITHMS

        return _known(names, list(ALGORITHMS), "algorithm")

    @model_validator(mode="after")
    def _one_place(self) -> PaperConfig:
        for name in self.appendix:
            if name in self.tables:
                raise ValueError(f"appendix names {name!r}, which `tables` names already")
        if "planned" in self.tables:
            raise ValueError("planned numbers are no results: `planned: true` shows them in the appendix")
        if "planned" in self.appendix and not self.planned:
            raise ValueError("appendix names 'planned', which `planned: true` asks for")
        for name in self.appendix_figures:
            if name in self.figures:
                raise ValueError(f"appendix_figures names {name!r}, which `figures` names already")
        return self

    @field_validator("labels")
    @classmethod
    def _label_keys(cls, labels: dict[str, str]) -> dict[str, str]:
        for key in labels:
            task, _, split = key.rpartition(":")
            if task not in ("", "retrieval", "zeroshot", "vqa") or split.count("/") != 1 or not all(split.split("/")):
                raise ValueError(f"{key!r} is neither `<dataset>/<split>` nor `retrieval|zeroshot|vqa:<dataset>/<split>`")
        return labels


def _known(names: tuple[str, ...], known: list[str], what: str) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} is called {name!r}; {nearest(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a {what} is named twice")
    return names
