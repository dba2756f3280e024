"""The sizes of a training: chosen from the data, checked before any work, and proposed where they do not fit."""

import datetime as dt
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.sizes import budget_rows, choose_batch_size, choose_budget, choose_days, gate_size
from ae_pipeline.features.split import PARTS, Window, split_sizes
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.storage.paths import ALL_ROWS
from ae_pipeline.training.preflight import check_landed, check_sizes
from ae_pipeline.training.size_rules import TrainingData

FIRST = dt.date(2024, 1, 1)
SIZES: Mapping[str, Any] = {
    "training.validation_days": st.none() | st.integers(1, 60),
    "training.calibration_days": st.none() | st.integers(1, 60),
    "training.batch_size": st.none() | st.integers(1, 2000),
    "training.window_days": st.integers(122, 400),
    "gate.days": st.none() | st.integers(0, 60),
    "alerts.budget": st.none() | st.sampled_from([1e-5, 0.001, 0.01, 0.05, 0.3]),
    "model.latent_dim": st.none() | st.integers(1, 20),
}


def config_of(values: Mapping[str, Any], *, daily: bool = True) -> PipelineConfig:
    """Return a configuration with some values, by dotted key."""
    sections: dict[str, Any] = {"dataset": "shop", "identity": ["id"]}
    if daily:
        sections |= {"event_time": "at", "start": FIRST}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return PipelineConfig.model_validate(sections)


def data_of(rows: Mapping[str, int], width: int = 12) -> TrainingData:
    """Return data of which each row counts."""

    def count(window: Window) -> Mapping[str, int]:
        if window.is_by_row:
            total = sum(rows[day] for day in window.train)
            return dict(zip(PARTS, split_sizes(total)[:3], strict=True))
        return {part: sum(rows[day] for day in getattr(window, part)) for part in PARTS}

    return TrainingData(rows, count, lambda *_: width)


def days(count: int, rows: int) -> dict[str, int]:
    return {(FIRST + dt.timedelta(days=index)).isoformat(): rows for index in range(count)}


def message_of(config: PipelineConfig, data: TrainingData) -> str:
    with pytest.raises(TrainingError) as caught:
        check_sizes(config, data, dict.fromkeys(data.rows, ""))
    return str(caught.value)


def with_proposal(values: Mapping[str, Any], message: str, *, daily: bool = True) -> PipelineConfig:
    """Return the configuration after a person has copied the printed YAML into it."""
    sections = yaml.safe_load(message.partition("set in its defs.yaml:\n")[2])
    printed = {f"{section}.{name}": value for section, keys in sections.items() for name, value in keys.items()}
    return config_of({**values, **printed}, daily=daily)


class TestChoice:
    def test_with_112_days_or_more_the_sizes_are_the_standard_ones(self) -> None:
        for count in (112, 365, 2000):
            parts = choose_days([1000] * count, config_of({}), None)
            assert (parts.validation, parts.calibration, parts.gate) == (21, 42, 7)
            assert parts.train == min(count - 7, 365) - 63
        assert (choose_budget(999), choose_batch_size(8192)) == (0.001, 512)

    @pytest.mark.parametrize(
        ("count", "expected"), [(3, (1, 1, 1, 0)), (10, (6, 1, 3, 0)), (21, (10, 3, 7, 1)), (56, (22, 10, 21, 3))]
    )
    def test_fewer_days_are_divided_in_proportion(self, count: int, expected: tuple[int, ...]) -> None:
        parts = choose_days([24] * count, config_of({}), None)
        assert (parts.train, parts.validation, parts.calibration, parts.gate) == expected
        assert not parts.by_row
        assert gate_size(days(count, 24), config_of({})) == expected[-1]

    @pytest.mark.parametrize(("count", "rows"), [(1, 500), (2, 500), (3, 7), (10, 2)])
    def test_too_few_days_or_rows_are_divided_row_by_row(self, count: int, rows: int) -> None:
        assert choose_days([rows] * count, config_of({}), None).by_row
        assert gate_size(days(count, rows), config_of({})) == 0

    def test_a_configured_budget_gets_the_days_that_it_needs(self) -> None:
        parts = choose_days([24] * 100, config_of({"alerts.budget": 0.001}), None)
        assert parts.calibration == 42  # 999 rows; in proportion it were 37
        assert choose_days([24] * 100, config_of({}), None).calibration == 37

    def test_configured_days_stay_and_the_others_make_room(self) -> None:
        parts = choose_days([24] * 14, config_of({"training.validation_days": 11}), None)
        assert (parts.train, parts.validation, parts.calibration, parts.gate) == (1, 11, 2, 0)

    @given(st.integers(3, 2000))
    def test_the_budget_is_the_lowest_with_one_digit(self, rows: int) -> None:
        budget = choose_budget(rows)
        assert 1 / (rows + 1) <= budget + 1e-12
        assert budget == 0.001 or budget < 1 / (rows + 1) * 2
        assert float(f"{budget:.0e}") == budget

    @given(st.integers(1, 10**6))
    def test_the_batch_size_gives_sixteen_steps_or_is_the_smallest(self, rows: int) -> None:
        size = choose_batch_size(rows)
        assert size in {8, 16, 32, 64, 128, 256, 512}
        assert size == 8 or rows >= 16 * size

    @given(st.integers(1, 10**6), st.integers(1, 10**9))
    def test_a_batch_of_large_images_is_bounded_in_bytes(self, rows: int, width: int) -> None:
        size = choose_batch_size(rows, width)
        assert size == 1 or 4 * size * width <= 256 << 20
        assert size == choose_batch_size(rows) or 4 * 2 * size * width > 256 << 20


class TestCheck:
    @pytest.mark.parametrize(("count", "rows"), [(1, 20), (2, 10), (2, 5000), (3, 9), (21, 24), (30, 1), (400, 1000)])
    def test_daily_data_needs_no_setting(self, count: int, rows: int) -> None:
        data = data_of(days(count, rows))
        sizes = check_sizes(config_of({}), data, dict.fromkeys(data.rows, ""))
        assert sizes.rows["train"] + sizes.rows["validation"] >= 16
        assert sizes.rows["calibration"] >= 3
        assert sizes.chosen["alerts.budget"] >= 1 / (sizes.rows["calibration"] + 1)

    @pytest.mark.parametrize("rows", [20, 30, 150, 999])
    def test_few_rows_without_event_time_need_no_setting(self, rows: int) -> None:
        sizes = check_sizes(config_of({}, daily=False), data_of({ALL_ROWS: rows}), {ALL_ROWS: ""})
        assert sizes.window.split_by == ("row_id",)
        assert sum(sizes.rows.values()) + split_sizes(rows)[3] == rows

    def test_many_rows_are_assigned_by_a_hash_as_before(self) -> None:
        sizes = check_sizes(config_of({}, daily=False), data_of({ALL_ROWS: 1000}), {ALL_ROWS: ""})
        assert sizes.window.split_by == ()

    def test_the_log_says_what_was_chosen_and_why(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "ae_pipeline")
        data = data_of(days(21, 24))
        check_sizes(config_of({"alerts.budget": 0.01}), data, dict.fromkeys(data.rows, ""))
        assert caplog.messages == [
            "sizes chosen for 21 days with 504 rows: training.validation_days=3, training.calibration_days=7, "
            "gate.days=1, training.batch_size=8 (240 training and 168 calibration rows; 112 days or more get 21 "
            "validation, 42 calibration and 7 gate days)"
        ]

    def test_all_problems_are_listed_at_once_with_one_setting(self) -> None:
        values = {
            "training.validation_days": 21,
            "training.calibration_days": 42,
            "gate.days": 7,
            "alerts.budget": 0.001,
            "model.latent_dim": 12,
            "training.batch_size": 4096,
        }
        data = data_of(days(21, 24))
        assert message_of(config_of(values), data) == (
            "the settings of 'shop' do not fit its 21 days with 504 rows: training.validation_days=21 plus "
            "training.calibration_days=42 plus gate.days=7 leave no training day of 21 days with rows; "
            "alerts.budget=0.001 needs 999 calibration rows, and there are 264 of 11 days; "
            "training.batch_size=4,096 is more than the 144 training rows; "
            "model.latent_dim=12 is not smaller than the 12 encoded values of a row; set in its defs.yaml:\n"
            "training:\n  validation_days: 3\n  calibration_days: 7\n  batch_size: 8\n"
            "gate:\n  days: 1\nalerts:\n  budget: 0.006\nmodel:\n  latent_dim: 6"
        )

    @pytest.mark.parametrize("rows", [1, 5, 19])
    def test_too_few_rows_are_one_clear_sentence(self, rows: int) -> None:
        assert message_of(config_of({}, daily=False), data_of({ALL_ROWS: rows})) == (
            f"'shop' has {rows} row{'s' * (rows > 1)}, but a training needs at least 20 rows; land more rows"
        )

    def test_a_large_batch_alone_is_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        data = data_of(days(21, 24))
        check_sizes(config_of({"training.batch_size": 4096}), data, dict.fromkeys(data.rows, ""))
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warnings == ["training.batch_size=4,096 is more than the 240 training rows; the training continues"]

    @settings(deadline=None, max_examples=300)
    @given(st.fixed_dictionaries(SIZES), st.integers(1, 130), st.integers(1, 60), st.integers(1, 30))
    def test_the_printed_setting_passes(self, values: dict[str, Any], count: int, rows: int, width: int) -> None:
        data, content = data_of(days(count, rows), width), dict.fromkeys(days(count, rows), "")
        if count * rows < 20:
            assert "needs at least 20 rows" in message_of(config_of(values), data)
            return
        try:
            check_sizes(config_of(values), data, content)
        except TrainingError as error:
            check_sizes(with_proposal(values, str(error)), data, content)

    @settings(deadline=None, max_examples=200)
    @given(st.fixed_dictionaries(SIZES), st.integers(20, 3000), st.integers(1, 30))
    def test_so_it_does_without_event_time(self, values: dict[str, Any], rows: int, width: int) -> None:
        data, content = data_of({ALL_ROWS: rows}, width), {ALL_ROWS: ""}
        try:
            check_sizes(config_of(values, daily=False), data, content)
        except TrainingError as error:
            check_sizes(with_proposal(values, str(error), daily=False), data, content)

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.integers(1, 400), min_size=1, max_size=150))
    def test_days_of_any_size_need_no_setting(self, rows: list[int]) -> None:
        by_day = dict(zip(days(len(rows), 1), rows, strict=True))
        if sum(rows) >= 20:
            sizes = check_sizes(config_of({}), data_of(by_day), dict.fromkeys(by_day, ""))
            assert min(sizes.rows.values()) > 0


class TestLandedFiles:
    def ledger(self, rows: Mapping[str, int]) -> Ledger:
        entry = LandedFile(size=1, modified_ns=1, sha256="", landed_ns=1, contract="", staged="x", days=dict(rows))
        return Ledger({"a.csv": entry})

    def test_rows_that_cannot_give_a_model_are_an_error(self) -> None:
        with pytest.raises(TrainingError, match="'shop' has 2 days with 6 rows, but a training needs at least 20 rows"):
            check_landed(config_of({}), self.ledger(days(2, 3)))

    def test_settings_that_do_not_fit_are_an_error(self) -> None:
        config = config_of({"training.calibration_days": 42})
        with pytest.raises(TrainingError, match="leave no training day of 14 days with rows"):
            check_landed(config, self.ledger(days(14, 100)))
        check_landed(config_of({}), self.ledger(days(14, 100)))


class TestImages:
    """Rows that are patches of images."""

    PATCHES: Mapping[str, Any] = {
        "images": {"patch": 8},
        "identity": ("file", "top", "left"),
        "model": {"hidden": None, "latent_dim": None},
    }

    def data(self, images: int) -> TrainingData:
        rows = data_of({ALL_ROWS: 100 * images})
        return replace(rows, images=images, calibration_images=lambda _: split_sizes(images)[2])

    def config(self, **alerts: Any) -> PipelineConfig:
        return PipelineConfig.model_validate({"dataset": "d", **self.PATCHES, "alerts": alerts})

    def test_five_images_get_one_sentence(self) -> None:
        message = message_of(self.config(), self.data(5))
        assert message == "'d' has 5 images, but a training needs at least 20 images; land more images"

    @pytest.mark.parametrize(("images", "budget"), [(20, 0.3), (60, 0.1), (200, 0.04)])
    def test_small_sets_get_the_lowest_budget_that_their_images_can_measure(self, images: int, budget: float) -> None:
        sizes = check_sizes(self.config(), self.data(images), {ALL_ROWS: ""})
        assert sizes.chosen["alerts.image_budget"] == budget
        assert budget_rows(budget) <= split_sizes(images)[2]

    def test_the_log_says_what_the_images_can_measure(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "ae_pipeline"):
            check_sizes(self.config(), self.data(60), {ALL_ROWS: ""})
        assert "sizes chosen for 6,000 patches of 60 images" in caplog.text
        assert "9 calibration images, which cannot measure an image budget below 0.1" in caplog.text

    @pytest.mark.parametrize(("budget", "is_tight"), [(0.1, True), (0.12, False), (None, False)])
    def test_a_budget_that_needs_all_images_gets_a_warning(
        self, caplog: pytest.LogCaptureFixture, budget: float | None, is_tight: bool
    ) -> None:
        check_sizes(self.config(image_budget=budget), self.data(60), {ALL_ROWS: ""})
        assert ("alerts.image_budget=0.1 needs all 9 calibration images" in caplog.text) == is_tight

    def test_a_budget_that_is_too_low_gets_a_proposal(self) -> None:
        message = message_of(self.config(image_budget=0.01), self.data(60))
        assert "alerts.image_budget=0.01 needs 99 calibration images, and there are 9" in message
        assert yaml.safe_load(message.partition("set in its defs.yaml:\n")[2]) == {"alerts": {"image_budget": 0.1}}

    def whole(self, **alerts: Any) -> PipelineConfig:
        return PipelineConfig.model_validate(
            {"dataset": "d", "identity": ("file",), "images": {"resize": 64}, "alerts": alerts}
        )

    @pytest.mark.parametrize("count", [1, 5, 19])
    def test_whole_images_are_called_images(self, count: int) -> None:
        message = message_of(self.whole(), data_of({ALL_ROWS: count}))
        some = f"{count} image{'s' if count > 1 else ''}"
        assert message == f"'d' has {some}, but a training needs at least 20 images; land more images"

    @pytest.mark.parametrize(
        ("count", "budget", "parts"),
        [
            (20, 0.3, "14 training and 3 calibration images; they cannot measure a budget below 0.25"),
            (50, 0.2, "35 training and 8 calibration images; they cannot measure a budget below 0.11"),
            (200, 0.04, "140 training and 30 calibration images; they cannot measure a budget below 0.032"),
        ],
    )
    def test_small_sets_of_whole_images_need_no_setting(
        self, caplog: pytest.LogCaptureFixture, count: int, budget: float, parts: str
    ) -> None:
        with caplog.at_level(logging.INFO, "ae_pipeline"):
            sizes = check_sizes(self.whole(), data_of({ALL_ROWS: count}), {ALL_ROWS: ""})
        assert (
            f"sizes chosen for {count} images: alerts.budget={budget:g}, training.batch_size=8 ({parts}" in caplog.text
        )
        assert sizes.rows["calibration"] >= budget_rows(budget)
