"""The benchmark of explanations: guilty columns, planted rows, and figures."""

import datetime as dt
from importlib.resources import files

import numpy as np
import polars as pl
import pytest
import yaml

pytest.importorskip("pyod")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.explanation import Contribution
from benchmarks import explanations
from benchmarks.column_faults import SINGLE, Planted, guilty_columns, plant_columns
from benchmarks.explanations import Answer, boxes, figures_of, is_in_combination, rank

ARRIVAL, DEPARTURE = {"sched_arr_time", "arr_delay", "arr_time"}, {"sched_dep_time", "dep_delay", "dep_time"}


@pytest.fixture(scope="module")
def shipped() -> PipelineConfig:
    """The configuration of flights."""
    text = files("ae_pipeline").joinpath("defs/flights/defs.yaml").read_text(encoding="utf-8")
    return PipelineConfig.model_validate(yaml.safe_load(text)["attributes"])


@pytest.fixture(scope="module")
def raw() -> pl.DataFrame:
    """Random raw rows with the types and ranges of flights."""
    rng = np.random.default_rng(0)
    n = 400

    def clock_times() -> np.ndarray:
        return rng.integers(0, 24, n) * 100 + rng.integers(0, 60, n)

    return pl.DataFrame(
        {
            **{f"{prefix}{end}_time": clock_times() for prefix in ("", "sched_") for end in ("dep", "arr")},
            **{f"{end}_delay": rng.integers(-200, 200, n) for end in ("dep", "arr")},
            "carrier": rng.choice(["AA", "UA", "DL"], n),
            "origin": rng.choice(["EWR", "JFK", "LGA"], n),
            "dest": rng.choice(["BOS", "LAX", "MIA", "ORD"], n),
            "tailnum": pl.Series(rng.choice(["N1", "N2"], n)).set(pl.Series(rng.random(n) < 0.1), None),
            "air_time": rng.integers(30, 400, n),
            "distance": rng.integers(100, 2500, n),
            "event_time": [dt.datetime(2013, 12, 1, tzinfo=dt.UTC) + dt.timedelta(hours=i) for i in range(n)],
        }
    )


@pytest.fixture(scope="module")
def planted(raw: pl.DataFrame) -> Planted:
    """Five planted rows of each kind."""
    return plant_columns(raw, {("AA", "EWR", "BOS")}, seed=3, per_kind=5)


@pytest.mark.parametrize(
    ("column", "guilty"),
    [
        *((column, ARRIVAL) for column in sorted(ARRIVAL)),
        *((column, DEPARTURE) for column in sorted(DEPARTURE)),
        *((column, {column}) for column in ("air_time", "distance", "origin", "dest", "carrier", "event_time")),
    ],
)
def test_guilty_columns_include_addends_and_derived_columns(
    shipped: PipelineConfig, column: str, guilty: set[str]
) -> None:
    columns = guilty_columns(column, shipped)
    assert columns - shipped.derive.keys() == guilty
    names = {name: pl.sql_expr(text).meta.root_names() for name, text in shipped.derive.items()}
    assert {name for name, roots in names.items() if column in roots} <= columns


def test_only_columns_derived_from_the_fault_are_guilty(
    shipped: PipelineConfig,
) -> None:
    derive = {"speed": "distance / air_time", "inverse_speed": "1 / speed", "caught_up": "dep_delay - arr_delay"}
    config = shipped.model_copy(update={"derive": derive})
    assert guilty_columns("distance", config) == {"distance", "speed", "inverse_speed"}
    assert guilty_columns("arr_delay", config) == {*ARRIVAL, "caught_up"}
    assert guilty_columns("arr_time", config) == ARRIVAL


def test_the_model_uses_every_planted_column(shipped: PipelineConfig) -> None:
    assert not {fault.column for fault in SINGLE.values()} & set(shipped.exclude)


def test_a_planted_row_differs_only_in_its_faulty_column(raw: pl.DataFrame, planted: Planted) -> None:
    assert planted.kinds == [kind for kind in SINGLE for _ in range(5)]
    assert planted.rows.schema == raw.schema
    assert planted.rows.height == 5 * len(SINGLE) > 0
    for row, kind, index in zip(planted.rows.iter_rows(named=True), planted.kinds, planted.indices, strict=True):
        original = raw.row(index, named=True)
        assert {name for name in raw.columns if row[name] != original[name]} == {SINGLE[kind].column}


def test_planting_is_deterministic_and_skips_cancelled_flights(raw: pl.DataFrame, planted: Planted) -> None:
    again, other = (plant_columns(raw, {("AA", "EWR", "BOS")}, seed, 5) for seed in (3, 4))
    assert again.rows.equals(planted.rows)
    assert not other.rows.equals(planted.rows)
    assert planted.rows["tailnum"].null_count() == 0


def test_a_carrier_is_planted_only_where_it_never_flew(raw: pl.DataFrame) -> None:
    routes = {(carrier, *ends) for carrier in ("AA", "UA") for ends in raw.select("origin", "dest").iter_rows()}
    rows, kinds, _ = plant_columns(raw, routes, seed=3, per_kind=5)
    chosen = pl.Series(kinds) == "carrier that does not fly the route"
    assert rows.filter(chosen)["carrier"].to_list() == ["DL"] * 5


def contributions(*columns: str) -> list[Contribution]:
    """Return contributions of columns, the largest first."""
    return [Contribution(column, 9.0 - index, "", "") for index, column in enumerate(columns)]


def test_the_rank_is_that_of_the_first_guilty_column() -> None:
    parts = contributions("latent", "dest", "arr_delay", "arr_time")
    assert rank(parts, {"dest"}) == 2
    assert rank(parts, ARRIVAL) == 3
    assert rank(parts, ARRIVAL, {"latent"}) == 2
    assert rank(parts, {"carrier"}) is None
    assert rank([], {"carrier"}) is None


def test_shares_are_counted_over_all_kinds_and_by_kind() -> None:
    far, late = "distance in kilometres", "arrival time lost"
    guilty = {far: {"distance"}, late: ARRIVAL, "air time lost": {"air_time"}}
    answers = [
        Answer(far, contributions("distance", "dest", "origin", "latent")),
        Answer(far, contributions("latent", "dest", "origin", "distance")),
        Answer(late, contributions("arr_delay", "dest", "origin")),
        Answer(late, contributions("dest", "origin", "carrier", "arr_time")),
    ]
    by_metric = {(figure.kind, figure.metric): figure for figure in figures_of(answers, guilty, 7, "flagged")}
    assert {figure.seed for figure in by_metric.values()} == {7}
    shares = {key: (figure.value, figure.rows) for key, figure in by_metric.items()}
    assert shares["all", "flagged: first"] == (0.5, 4)
    assert shares["all", "flagged: itself first"] == (0.25, 4)
    assert shares["all", "flagged: top 3"] == (0.5, 4)  # the fourth column does not count
    assert shares["all", "flagged: top 3, latent skipped"] == (0.75, 4)
    assert shares[far, "flagged: first, latent skipped"] == (0.5, 2)
    assert shares[far, "flagged: first was latent"] == (1, 2)
    assert shares[late, "flagged: first was dest"] == (1, 2)
    assert not any(kind == "air time lost" for kind, _ in shares)
    table = explanations.describe(list(by_metric.values()))
    assert "| distance in kilometres       |        latent 1 |" in table


def test_maps_are_compared_with_the_box_of_the_defect() -> None:
    clean = np.full((3, 6, 6), 100, np.uint8)
    planted = clean.copy()
    planted[0, 1, 2] = planted[0, 3, 3] = 0
    planted[1, 5, 5] = 0
    marked = boxes(planted, clean)
    expected = np.zeros_like(marked)
    expected[0, 1:4, 2:4] = expected[1, 5, 5] = True
    np.testing.assert_array_equal(marked, expected)
    # The map separates the box within each patch. On a common scale, the second box is below the first background.
    residual = marked + np.array([10.0, 0.0, 0.0])[:, np.newaxis, np.newaxis]
    figures = explanations.figures_of_maps({"dead block": (residual, marked)}, 0)
    values = {(figure.kind, figure.metric): figure.value for figure in figures}
    assert values["all", "AUROC by pixel, mean of patches"] == 1
    pairs = 6 * (30 + 35) + 35  # box of the first patch: all background; of the second: its own
    assert values["dead block", "AUROC by pixel, pooled"] == pytest.approx(pairs / (7 * 65))


def test_a_combination_counts_if_it_has_the_column_and_is_among_the_first_two() -> None:
    column = Contribution("distance", 9.0, "746", "950")
    combination = Contribution("categories", 12.0, "carrier EV × dest IAH: never together in 300 counted rows", "12")
    assert is_in_combination([column, combination], "carrier")
    assert is_in_combination([combination], "dest")
    assert not is_in_combination([column, combination], "origin")
    assert not is_in_combination([column, column, combination], "dest")
    assert not is_in_combination([column], "distance")
