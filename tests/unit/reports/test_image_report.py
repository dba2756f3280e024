"""Verdicts on images whose rows are patches: from landed files to the table of images and the report."""

import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ae_pipeline.cli import summary, versions
from ae_pipeline.cli.summary import report_lines
from ae_pipeline.common.errors import ConfigError, PublicationError
from ae_pipeline.config.columns import ImageShape
from ae_pipeline.config.display import PLAIN
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.heat_maps import each_image, heat_map
from ae_pipeline.detector.image_verdicts import count_images, image_id, score_images
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.features.build import build_features_day, feature_columns
from ae_pipeline.features.sizes import choose_budget
from ae_pipeline.features.split import GATE, PARTS, cut_window
from ae_pipeline.ingestion.landing_folder import list_landing
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.latents.images import IMAGES, has_images, publish_images, read_images
from ae_pipeline.latents.read import published_days, read_latents
from ae_pipeline.lifecycle import comparison, version_pages
from ae_pipeline.lifecycle.comparison import Comparison, compare_versions
from ae_pipeline.lifecycle.report import ReportedDays
from ae_pipeline.lifecycle.version_pages import compare_page
from ae_pipeline.monitoring.budget import ImageCounts
from ae_pipeline.monitoring.feedback import Mark, MarkKind, MarkState
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.orchestration.assets import anomaly_report
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports import day_pages, image_report, page, ranking, review, served
from ae_pipeline.reports.build import Report
from ae_pipeline.reports.day_pages import day_page
from ae_pipeline.reports.explore import column_page, row_page
from ae_pipeline.reports.explore_latents import latents_page
from ae_pipeline.reports.heat_pictures import export_maps
from ae_pipeline.reports.image_report import report_images
from ae_pipeline.reports.labels import LabeledRow
from ae_pipeline.reports.model_card import model_card
from ae_pipeline.reports.ranking import ranking_hash
from ae_pipeline.reports.review import MarkRequest, cause_key, flagged_rows, mark, read_ranked
from ae_pipeline.reports.served import home_page, mark_page
from ae_pipeline.scoring.calibration import Calibration, calibrate
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.calibration_scores import score_calibration
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.pixel_threshold import fit_pixel_threshold
from ae_pipeline.training.reviewed import Reviewed
from ae_pipeline.training.screened import Screened
from ae_pipeline.training.screening import screen_by_serving
from tests.support.datasets import LandedDataset, make_dataset
from tests.support.images import waves
from tests.support.reports import Text, as_dataset, published, reported, speaks_of_rows
from tests.support.sensors import Fitted

pytestmark = pytest.mark.slow

SHAPE = ImageShape(height=20, width=26, channels=1, dtype="uint8")
TRAIN, TEST, BAD = 40, 12, 6
SETTINGS: dict[str, Any] = {
    "event_time": None,
    "start": None,
    "end": None,
    "identity": ["file", "top", "left"],
    "images": {
        "patch": 12,
        "stride": 4,
        "path": "(?P<split>train|test)/(?P<defect>[a-z]+)/",
        "masks": "truth/{defect}/{stem}_mask.png",
    },
    "label": "defect <> 'good'",
    "model": {"latent_dim": 4, "hidden": (24,), "scaling": "standard"},
    "training": {"epochs": 12, "batch_size": 64, "learning_rate": 0.01, "where": "split = 'train'", "device": "cpu"},
    "alerts": {"image_budget": 0.2, "image_patches": 2},
}


def png(pixels: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def land_gallery(dataset: LandedDataset) -> None:
    """Land images in the layout of MVTec AD: those for training, and a test set with masks of its bright squares."""
    images = waves(TRAIN + TEST, 0, SHAPE)[..., 0]
    for index, image in enumerate(images):
        if index < TRAIN:
            dataset.land(f"train/good/{index:03d}.png", png(image))
            continue
        is_bad = index < TRAIN + BAD
        if is_bad:
            top, left = 2 * index % 15, 3 * index % 20
            mask = np.zeros_like(image)
            mask[top : top + 4, left : left + 5] = 255
            image[mask > 0] += 128  # wraps around, so that each pixel changes by half the range
            dataset.land(f"truth/square/{index:03d}_mask.png", png(mask))
        dataset.land(f"test/{'square' if is_bad else 'good'}/{index:03d}.png", png(image))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A published dataset of patches. Tests must not write to it."""
    dataset = make_dataset(tmp_path_factory.mktemp("gallery"), **SETTINGS)
    land_gallery(dataset)
    ingested = dataset.ingest()
    dataset.raw(ingested, ALL_ROWS)
    build_features_day(ALL_ROWS, dataset, ingested.contract)
    window = cut_window({ALL_ROWS: read_facts(dataset.paths.features(ALL_ROWS))["content_hash"]}, dataset.config)
    columns = feature_columns(dataset.config, ingested.contract)
    bundle, result = fit_bundle(Dataset(dataset.config, dataset.paths), columns, window)
    fitted = Fitted(
        config=dataset.config,
        paths=dataset.paths,
        columns=columns,
        days=(ALL_ROWS,),
        window=window,
        bundle=bundle,
        result=result,
    )
    published(fitted, [ALL_ROWS])
    return fitted


@pytest.fixture(scope="module")
def report(gallery: Fitted) -> Report:
    return reported(gallery, [ALL_ROWS])


def images_of(part: str, fitted: Fitted) -> set[str]:
    rows = fitted.window.rows(part, fitted.paths, ["row_id"])
    return set(rows.select(image_id(fitted.config.identity)).to_series())


def test_masks_are_no_rows(gallery: Fitted) -> None:
    files = set(gallery.features(ALL_ROWS).select(image_id(gallery.config.identity)).to_series())
    assert len(files) == TRAIN + TEST
    assert {name.split("/")[0] for name in files} == {"train", "test"}


def test_no_image_is_in_two_parts_and_none_of_the_test_set_in_any(gallery: Fitted) -> None:
    parts = [images_of(part, gallery) for part in (*PARTS, GATE)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == TRAIN
    assert {name.split("/")[0] for part in parts for name in part} == {"train"}
    assert [count_images(part, gallery.window, gallery) for part in PARTS] == [len(part) for part in parts[:3]]


def test_images_are_calibrated_on_the_calibration_images(gallery: Fitted) -> None:
    rows = gallery.window.rows("calibration", gallery.paths)
    scored = rows.select("row_id").with_columns(score=pl.Series(gallery.bundle.score(rows).score))
    expected = score_images(scored, gallery.config.identity, top=2)["score"].sort().to_numpy()
    calibration = gallery.bundle.image_calibration
    assert calibration is not None
    np.testing.assert_allclose(calibration.scores, expected, rtol=1e-9)
    assert calibration.budget == 0.2


def test_the_table_of_images_follows_the_latent_table(gallery: Fitted, report: Report) -> None:
    images = read_images("shop", data=gallery.paths.root)
    latents = read_latents("shop", data=gallery.paths.root).polars()
    expected = score_images(latents, gallery.config.identity, top=2)
    assert (
        images.sort("image_id")
        .select(expected.columns)
        .equals(expected.with_columns(pl.col("patches").cast(pl.UInt32)))
    )
    assert images["patches"].unique().to_list() == [3 * 5]
    assert images["model_version"].unique().to_list() == [3]
    assert images["latent_space"].unique().to_list() == latents["latent_space"].unique().to_list()


def test_defects_are_found_by_image_and_by_pixel(report: Report) -> None:
    images = json.loads(report.summary.read_text(encoding="utf-8"))["images"]
    assert images["images"] == TRAIN + TEST
    assert images["held_out"]["anomalies"] == images["held_out"]["anomalies_flagged"] == BAD
    assert images["held_out"]["auroc"] > 0.95
    assert (images["pixels"]["images"], images["pixels"]["defects"]) == (images["held_out"]["rows"], BAD)
    assert images["pixels"]["auroc"] > 0.95
    assert images["pixels"]["aupro"] > 0.8


def test_the_page_shows_the_images_first(report: Report) -> None:
    text = Text(report.page.read_text(encoding="utf-8")).text
    assert text.index(f"of {TRAIN + TEST} images are flagged") < text.index("Most anomalous patches")
    assert "the mean of the 2 highest scores of its patches" in text.replace("\n", " ")
    assert text.count("test/square/") >= BAD
    assert "Patches that are not flagged and not known anomalies, with the scores nearest" in text


def test_the_page_counts_images_where_it_speaks_of_known_anomalies(report: Report) -> None:
    assert report.images is not None
    images, page = report.images, Text(report.page.read_text()).text
    whole = images.all_images
    assert whole is not None
    assert f"{images.flagged} of {TRAIN + TEST} images flagged, {whole.anomalies_flagged} of them known ano" in page
    assert "An image is a known anomaly if defect <> 'good'" in page
    assert "rows with a known label" not in page
    assert "patches" in page
    known = set(images_with(images.misses))
    flagged = {each.image_id for each in images.top_images if each.is_anomaly}
    assert len(known) == whole.anomalies - whole.anomalies_flagged
    assert known.isdisjoint(flagged)
    assert set(images_with(images.false_alarms)) <= flagged
    assert len(images.false_alarms) == whole.normal_flagged


def images_with(rows: Iterable[LabeledRow]) -> list[str]:
    return [each.row_id for each in rows]


def test_dagster_counts_images_that_are_known_anomalies(report: Report) -> None:
    metadata = anomaly_report._label_metadata(report)
    assert report.images is not None
    whole = report.images.all_images
    assert whole is not None
    assert (metadata["known_anomalies"], metadata["known_anomalies_flagged"], metadata["normal_images_flagged"]) == (
        *(BAD, whole.anomalies_flagged),
        whole.normal_flagged,
    )
    assert anomaly_report._label_metadata(replace(report, images=None))["known_anomalies"] > BAD
    assert anomaly_report._label_metadata(replace(report, images=None, labels=None)) == {}


def test_misses_and_false_alarms_are_images(gallery: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = pl.col("is_anomaly").not_().alias("is_anomaly")
    judged = publish_images(gallery.paths, gallery.bundle, 1)
    assert judged is not None
    monkeypatch.setattr(image_report, "publish_images", lambda *_: judged.with_columns(turned))
    images = report_images(published_days(gallery.paths), as_dataset(gallery), gallery.bundle, 1)
    assert images is not None
    assert images.all_images is not None
    misses, false_alarms = images_with(images.misses), images_with(images.false_alarms)
    assert misses
    assert all(image.startswith("test/square/") for image in misses)
    assert len(false_alarms) == min(20, images.all_images.normal_flagged)
    assert all("/good/" in image for image in false_alarms)
    assert [each.score for each in images.misses] == sorted((each.score for each in images.misses), reverse=True)
    assert {each.day for each in (*images.misses, *images.false_alarms)} == {ALL_ROWS}


def test_a_real_patch_makes_its_image_a_known_anomaly(gallery: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    files, dataset = published_days(gallery.paths), as_dataset(gallery)
    before = report_images(files, dataset, gallery.bundle, 1)
    assert before is not None
    good, square = (
        next(each.strangest for each in before.top_images if each.image_id.startswith(f"test/{kind}/"))
        for kind in ("good", "square")
    )
    marks = [
        Mark(kind=MarkKind.ROW, subject=row_id, state=state, day=ALL_ROWS, rows={row_id: ALL_ROWS})
        for row_id, state in ((good, MarkState.REAL), (square, MarkState.FALSE_ALARM))
    ]
    monkeypatch.setattr(image_report, "marks_of", lambda _: marks)
    after = report_images(files, dataset, gallery.bundle, 1)
    assert after is not None
    # The other patches of the image with a square keep its label.
    labels = [{each.image_id: each.label for each in images.top_images} for images in (before, after)]
    image = good.partition("|")[0]
    assert labels[1] == {**labels[0], image: "anomaly"}
    assert labels[0][image] == "normal"
    assert after.all_images is not None
    assert after.all_images.anomalies == BAD + 1


def test_the_verdict_holds_the_label_against_images(gallery: Fitted, report: Report) -> None:
    images = read_images("shop", data=gallery.paths.root)
    (day,) = report.days
    assert day.known_anomalies == BAD * 3 * 5  # of patches, and a square covers few of them
    assert day.images == ImageCounts(
        flagged=int(images["is_anomaly"].sum()),
        known_anomalies=BAD,
        known_flagged=int(images.filter(pl.col("image_id").str.contains("/square/"))["is_anomaly"].sum()),
    )
    assessment = report.newest_assessment
    assert assessment is not None
    assert assessment.images == day.images
    assert f"{BAD} of {BAD} known anomalous images are flagged" in assessment.message


def test_the_command_line_lists_images_and_not_patches(gallery: Fitted, report: Report) -> None:
    images = json.loads(report.summary.read_text(encoding="utf-8"))["images"]
    text = "\n".join(report_lines(gallery.paths, column_names(as_dataset(gallery))))
    assert f"flagged images   {images['flagged']} of {TRAIN + TEST} images, budget 20.00% of the normal ones" in text
    assert "\nverdict          all patches: " in text
    whole = images["all_images"]
    assert (
        f"known anomalies  {BAD} of {BAD} flagged, {whole['normal_flagged']} of {TRAIN + TEST - BAD} normal images"
        in text
    )
    assert "The 10 highest-scoring images:" in text
    listed = [line.split()[1] for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert (
        listed == read_images("shop", data=gallery.paths.root).sort("score", descending=True)["image_id"].to_list()[:10]
    )


def test_the_command_line_names_the_reason_of_an_image(
    gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(report.summary.read_text(encoding="utf-8"))
    first, second, *_ = content["images"]["top_images"]
    patch = content["strangest"][0]
    content["strangest"] = [
        {**patch, "row_id": first["strangest"], "is_anomaly": False, "because": "odd stripes", "contributions": []},
        {**patch, "row_id": second["strangest"], "is_anomaly": False, "because": "", "contributions": []},
    ]
    monkeypatch.setattr(summary, "read_summary", lambda _: content)
    lines = report_lines(gallery.paths, PLAIN)
    start = lines.index("The 10 highest-scoring images:") + 1
    assert lines[start].startswith(f"  1. {first['image_id']}  (score ")
    assert lines[start + 1] == "     odd stripes"
    assert [line[:5] for line in lines[start + 2 :]] == [f"{place:>3}. " for place in range(2, 11)]


def test_the_command_line_speaks_of_heat_maps_when_there_is_a_report(
    gallery: Fitted, report: Report, tmp_path: Path
) -> None:
    assert report.summary.exists()
    no_report = replace(as_dataset(gallery), paths=DatasetPaths(tmp_path, gallery.paths.dataset))
    for dataset, is_reported in ((as_dataset(gallery), True), (no_report, False)):
        with dg.DagsterInstance.ephemeral() as instance:
            tracker = cast("Tracker", SimpleNamespace(version=lambda *_: None))
            text = summary.summarize(dataset, tracker, dg.Definitions(), instance)
        assert ("The report shows the heat maps of images" in text) == is_reported


def compared(gallery: Fitted, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Comparison:
    """Compare the model, as version 3, with itself after changes, as version 2."""
    bundles = {3: gallery.bundle, 2: replace(gallery.bundle, **changes)}
    tracked = [TrackedVersion("shop", number, "run", {}) for number in bundles]
    tracker = cast("Tracker", SimpleNamespace(versions=lambda _: tracked, version=lambda *_: tracked[1]))
    monkeypatch.setattr(comparison, "load_bundle", lambda _, version: bundles[version.version])
    return compare_versions(as_dataset(gallery), tracker, 3)


def strict(gallery: Fitted) -> Calibration:
    """Return a calibration under which only the image with the highest score is flagged."""
    first, second = read_images("shop", data=gallery.paths.root)["score"].sort(descending=True)[:2]
    return calibrate(np.full(99, (first + second) / 2), 0.01, None)


def test_a_comparison_counts_the_images_that_the_report_counts(
    gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = report.images
    assert images is not None
    between = compared(gallery, monkeypatch, image_calibration=strict(gallery))
    flagged = [each for each in images.top_images if each.is_anomaly]
    assert (between.unit, between.rows, between.total, between.patches) == ("image", *[TRAIN + TEST] * 2, 15 * 52)
    assert (between.flagged, between.both) == ((images.flagged, 1), 1)
    assert between.patches_flagged == (report.flagged, report.flagged)
    assert between.thresholds[0] == images.threshold
    assert between.labeled is not None
    assert between.labeled[0] == images.all_images
    assert (between.labeled[1].anomalies, between.labeled[1].anomalies_flagged) == (BAD, 1)
    assert [each.row_id for each in between.only_new] == [each.image_id for each in flagged[1:]]
    assert [each.score for each in between.only_new] == pytest.approx([each.score for each in flagged[1:]], rel=1e-6)
    assert all(each.because and each.score == each.other_score for each in between.only_new)
    assert between.only_old == ()
    assert f"version 3 flags {len(flagged)} and version 2 flags 1 of 52 images: 1 by both" in between.message


def test_the_page_and_the_command_line_compare_images(
    gallery: Fitted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    between = compared(gallery, monkeypatch, image_calibration=strict(gallery))
    monkeypatch.setattr(version_pages, "compare_versions", lambda *_: between)
    html = compare_page(3, None, as_dataset(gallery), cast("Tracker", None))
    page = " ".join(Text(html.replace("</t", " </t")).text.split())
    assert f"flagged of 52 images (780 patches) {between.flagged[0]} 1 patches flagged" in page
    assert f"known anomalies flagged {BAD} of {BAD} 1 of {BAD} normal images flagged" in page
    assert f"Only version 3 flags: {between.gained} images image score" in page
    assert speaks_of_rows(html) == []
    project = SimpleNamespace(dataset=lambda _: None, tracker=None)
    monkeypatch.setattr(versions, "Project", SimpleNamespace(load=lambda: project))
    monkeypatch.setattr(comparison, "compare_versions", lambda *_: between)
    versions.compare("shop", 3, None)
    text = capsys.readouterr().out
    assert f"Only version 3 flags {between.gained} images:" in text
    assert "Only version 2 flags 0 images." in text
    assert speaks_of_rows(text) == []


def test_a_sample_of_a_comparison_has_whole_images(gallery: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_MAX_ROWS", 100)
    between = compared(gallery, monkeypatch)
    assert (between.rows, between.total, between.patches) == (7, TRAIN + TEST, 7 * 15)
    assert "of 7 images, sampled from the 52: " in between.message


def test_a_mark_replaces_the_label_of_a_comparison(
    gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.images is not None
    good = next(each.strangest for each in report.images.top_images if "/good/" in each.image_id)
    mark = Mark(kind=MarkKind.ROW, subject=good, state=MarkState.REAL, day=ALL_ROWS, rows={good: ALL_ROWS})
    monkeypatch.setattr(comparison, "marks_of", lambda _: [mark])
    labeled = compared(gallery, monkeypatch).labeled
    assert labeled is not None
    assert labeled[0].anomalies == BAD + 1


def test_patches_are_compared_with_a_model_that_gives_no_verdicts_on_images(
    gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = compared(gallery, monkeypatch, image_calibration=None)
    assert (between.unit, between.rows, between.patches_flagged, between.patches) == ("patch", 780, None, 0)
    assert between.flagged == (report.flagged, report.flagged)
    assert between.labeled is not None
    assert between.labeled[0].anomalies == BAD * 15
    assert " of 780 patches: " in between.message


def test_images_are_compared_after_a_change_of_the_identity(
    gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.images is not None
    earlier = gallery.bundle.config.model_copy(update={"identity": ("split", "file", "top", "left")})
    between = compared(gallery, monkeypatch, detector=replace(gallery.bundle.detector, config=earlier))
    flagged = report.images.flagged
    assert (between.unit, between.rows, between.flagged, between.both) == ("image", 52, (flagged, flagged), flagged)
    assert (between.only_new, between.only_old) == ((), ())


def test_rows_are_compared_that_are_no_patches_any_more(gallery: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    images = gallery.bundle.config.images
    assert images is not None
    whole = {"identity": ("file",), "images": images.model_copy(update={"patch": None, "stride": None})}
    dataset = Dataset(gallery.bundle.config.model_copy(update=whole), gallery.paths)
    monkeypatch.setattr("tests.unit.reports.test_image_report.as_dataset", lambda _: dataset)
    between = compared(gallery, monkeypatch)
    assert (between.unit, between.rows, between.patches_flagged, between.patches) == ("image", 780, None, 0)


def test_no_page_of_patches_speaks_of_rows(gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = as_dataset(gallery)
    column, card = column_page("top", dataset), model_card(gallery.bundle, 3, [], "passed", 0, {})
    assert column is not None
    assert "Values of all patches." in column
    assert "| part | first day | last day | days | patches |" in card
    first, *_ = flagged_rows(read_ranked(gallery.paths), gallery.config)
    rows = [replace(first, row_id=f"{number}", entity="camera 1") for number in range(4)]
    monkeypatch.setattr(served, "flagged_rows", lambda *_: rows)
    monkeypatch.setattr(review, "false_alarms_of", lambda *_: ["0", "1", "2"])
    subject = cause_key(first.columns)
    offer = MarkRequest(kind=MarkKind.CAUSE, subject=subject, state=MarkState.REAL, entity="camera 1")
    offered = mark_page(offer, "", dataset, "")
    assert "3 patches of camera 1 with a cause like" in offered
    pages = [
        report.page.read_text(encoding="utf-8"),
        latents_page(dataset),
        mark_page(MarkRequest(kind=MarkKind.CAUSE, subject="spot", state=MarkState.REAL), "", dataset, ""),
        home_page({"shop": gallery.paths}, {"shop": gallery.config}, {}),
        column,
        card.replace(", row, ", ", "),  # a value of alerts.evidence
        offered,
    ]
    for content in pages:
        assert "patches" in Text(content).text
        assert speaks_of_rows(content) == []


def test_errors_of_patches_do_not_speak_of_rows(
    gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, files = as_dataset(gallery), published_days(gallery.paths)
    assert report.flagged > 5
    usual = read_latents("shop", data=gallery.paths.root).polars().sort("score")["row_id"][0]
    errors = []
    for subject in ("nope", usual):
        with pytest.raises(ConfigError) as error:
            mark(MarkRequest(kind=MarkKind.ROW, subject=subject, state=MarkState.KNOWN), dataset)
        errors.append(str(error.value))
    assert "has no patch 'nope'; " in errors[0]
    assert errors[0].endswith("lists the flagged patches and causes of its newest day")
    assert errors[1].startswith(f"patch {usual!r} of 'shop' is not flagged, so it cannot be known; a patch that is not")
    with pytest.raises(PublicationError, match="so its patches have no days; open the page of all patches") as no_days:
        day_page("2024-01-01", dataset, gallery.bundle, 3)
    outdated = day_pages._outdated(ALL_ROWS, dataset)
    monkeypatch.setattr(ranking, "_MAX_RANKED", 5)
    ranking._rank(ALL_ROWS, files[ALL_ROWS], dataset, gallery.bundle)
    (warning,) = caplog.messages
    assert warning == f"all: {report.flagged} patches are flagged; the report and alerts.parquet have the highest 5"
    assert speaks_of_rows("\n".join([*errors, str(no_days.value), str(outdated), warning])) == []


def test_a_page_of_an_earlier_version_speaks_of_patches(
    gallery: Fitted, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.newest_assessment is not None
    context = page._read_context(gallery.paths)
    assert context is not None
    variables = context["variables"]
    for record in (variables["assessment"], *variables["assessed"].values()):
        assert record.pop("noun") == "patch"
    monkeypatch.setattr(page, "marks_digest", lambda _: "some")
    monkeypatch.setattr(page, "day_count", lambda _, each: {"noun": each.noun})
    marked = page._with_marks(variables, as_dataset(gallery))
    assert marked["assessment"]["noun"] == "patch"
    assert marked["summary"]["days"] == [{"noun": "patch"}]


def test_messages_of_patches_do_not_speak_of_rows(gallery: Fitted, report: Report) -> None:
    names = column_names(as_dataset(gallery))
    assert (names.row, names.rows) == ("patch", "patches")
    assessment = report.newest_assessment
    assert assessment is not None
    assert assessment.title == "all patches"
    over = replace(assessment, flagged=700, known=0)
    crowded = f"700 patches are flagged, {700 / over.expected:.0f} times the budget"
    assert [each.message for each in over.reasons] == [crowded]
    version = TrackedVersion("shop", 3, "run", {})
    checks = ReportedDays(report=report, version=version, budget=0.01, days=(ALL_ROWS,), names=names)
    assert checks.budget_message.startswith(f"{checks.flagged} of {780 - BAD * 15} patches that are not known")
    texts = [assessment.message, over.message, over.aside, *report_lines(gallery.paths, names)]
    texts += [checks.budget_message, checks.unusual_message, checks.completeness_message, checks.drift_message]
    assert speaks_of_rows("\n".join(texts)) == []
    assert DayAssessment.from_record(over.record()).message == over.message


def test_a_table_keeps_the_hash_of_its_ranked_rows(gallery: Fitted) -> None:
    alerts, whole = gallery.config.alerts, gallery.config.model_copy(update={"images": None})
    settings = ["8", None, alerts.report_rows, alerts.false_discovery_rate]
    assert ranking_hash(None, whole) == hash_json(settings)
    assert ranking_hash(None, gallery.config) not in {hash_json(settings), hash_json(["9", *settings[1:]])}


@pytest.mark.usefixtures("report")
def test_points_of_images_link_to_no_page_of_a_row(gallery: Fitted) -> None:
    dataset = as_dataset(gallery)
    page = latents_page(dataset)
    content = json.loads(page.split('id="content">')[1].split("</script>")[0])
    assert content["has_row_pages"] is False
    assert row_page(content["rows"][0][0], "", dataset, gallery.bundle) is None


def test_a_damaged_table_of_images_is_written_again(gallery: Fitted) -> None:
    path = Path(gallery.paths.latents) / IMAGES
    publish_images(gallery.paths, gallery.bundle, 3)
    content = path.read_bytes()
    assert has_images(gallery)
    path.write_bytes(content[: len(content) // 2])
    assert not has_images(gallery)
    with pytest.raises(PublicationError, match=r"has no verdicts on images: .*; set images.patch, train"):
        read_images("shop", data=gallery.paths.root)
    publish_images(gallery.paths, gallery.bundle, 3)
    assert path.read_bytes() == content


def test_a_model_without_a_calibration_of_images_has_no_table(gallery: Fitted) -> None:
    earlier = replace(gallery.bundle, image_calibration=None)
    files = published_days(gallery.paths)
    report = report_images(files, gallery, earlier, 3)
    assert report is not None
    assert (report.images, report.pixels is not None) == (0, True)
    assert has_images(gallery)
    with pytest.raises(PublicationError, match="its model has no calibration of images"):
        read_images("shop", data=gallery.paths.root)
    publish_images(gallery.paths, gallery.bundle, 3)


def test_a_bundle_keeps_the_calibration_of_images(gallery: Fitted, tmp_path: Path) -> None:
    gallery.bundle.save(tmp_path)
    loaded = ModelBundle.load(tmp_path)
    assert loaded.image_calibration is not None
    assert gallery.bundle.image_calibration is not None
    np.testing.assert_array_equal(loaded.image_calibration.scores, gallery.bundle.image_calibration.scores)
    assert loaded.window == gallery.bundle.window
    assert loaded.fingerprint == gallery.bundle.fingerprint


def test_heat_maps_have_the_size_of_the_image_and_mark_the_defect(gallery: Fitted) -> None:
    name = f"test/square/{TRAIN:03d}.png"
    features = gallery.features(ALL_ROWS)
    chosen = features.filter(pl.col("row_id").str.starts_with(name))
    ((identity, rows),) = each_image(chosen.iter_slices(4), gallery.config)
    heat = heat_map(gallery.bundle.network, rows, gallery.config)
    assert (identity, heat.shape) == (name, (SHAPE.height, SHAPE.width))
    top, left = 2 * TRAIN % 15, 3 * TRAIN % 20
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert top - 2 <= row < top + 6
    assert left - 2 <= column < left + 7
    shuffled = rows.sample(fraction=1, shuffle=True, seed=1)
    np.testing.assert_allclose(heat_map(gallery.bundle.network, shuffled, gallery.config), heat, rtol=1e-9)


def test_pixels_are_calibrated_on_calibration_images(gallery: Fitted) -> None:
    rows = gallery.window.rows("calibration", gallery.paths)
    images = each_image([rows], gallery.config)
    heat = np.concatenate([heat_map(gallery.bundle.network, part, gallery.config).ravel() for _, part in images])
    budget = gallery.bundle.calibration.budget
    assert gallery.bundle.pixel_threshold == pytest.approx(np.quantile(heat, 1 - budget), rel=0.02)


def screened(gallery: Fitted) -> Screened:
    """Return the window of the gallery without one calibration patch."""
    row_ids = gallery.window.rows("calibration", gallery.paths, ["row_id"])["row_id"]
    return Screened(gallery.window, {"calibration": row_ids.head(1)}, None)


def test_an_image_with_a_left_out_patch_counts_nowhere(gallery: Fitted) -> None:
    without, config = screened(gallery), gallery.config
    incomplete = without.incomplete_images("calibration", config)
    images = dict(each_image([gallery.window.rows("calibration", gallery.paths)], config))
    assert count_images("calibration", gallery.window, gallery, incomplete) == len(images) - 1
    heat = [heat_map(gallery.bundle.network, part, config) for name, part in images.items() if name not in incomplete]
    threshold = fit_pixel_threshold(gallery.bundle.detector, without, gallery, 0.05)
    assert threshold == pytest.approx(np.quantile(np.concatenate(heat), 0.95), rel=0.01)


def test_patches_stay_if_too_many_images_would_be_incomplete(gallery: Fitted) -> None:
    """A tenth of the patches is within the cap, but most images have one of them."""
    scores = gallery.bundle.detector.scores([gallery.window.rows("calibration", gallery.paths)])
    calibration = calibrate(np.full(99, np.quantile(scores, 0.9)), 0.01, None)
    judged = screen_by_serving(gallery.window, gallery, replace(gallery.bundle, calibration=calibration))
    assert judged.facts is not None
    assert "calibration" in judged.facts.changed
    assert "images of calibration would go, more than 25% of its images" in judged.facts.message
    assert judged.incomplete_images("calibration", gallery.config).is_empty()


def test_the_image_budget_is_of_the_images_that_are_scored(gallery: Fitted) -> None:
    alerts = gallery.config.alerts.model_copy(update={"image_budget": None})
    training = gallery.config.training.model_copy(update={"epochs": 1})
    config = gallery.config.model_copy(update={"alerts": alerts, "training": training})
    marked = Reviewed(real={ALL_ROWS: list(screened(gallery).row_ids["calibration"])})
    dataset = Dataset(config, gallery.paths)
    bundle, _ = fit_bundle(dataset, gallery.columns, gallery.window, reviewed=marked)
    count = len(images_of("calibration", gallery)) - 1
    assert bundle.image_calibration is not None
    assert len(bundle.image_calibration.scores) == count
    assert bundle.facts.chosen["alerts.image_budget"] == bundle.image_calibration.budget == choose_budget(count)


def test_a_sample_of_patches_keeps_the_images_that_the_budget_needs(gallery: Fitted) -> None:
    whole, count = Screened(gallery.window, {}, None), len(images_of("calibration", gallery))
    for images, expected in ((count, count), (None, 0)):
        scored = score_calibration(gallery.bundle.detector, whole, gallery, 0.2, 10**15, images)
        assert scored.images is not None
        assert len(scored.images) == expected


def test_an_image_with_an_outlying_patch_does_not_raise_the_threshold(
    gallery: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One patch of a calibration image scores far higher than all others. All patches of the image go."""
    patches = gallery.window.rows("calibration", gallery.paths, ["row_id"])
    defect, budget_of = patches["row_id"][0], {None: True, 0.15: False}  # 0.15 needs all six images

    def scores(_: Detector, batches: Iterable[pl.DataFrame]) -> npt.NDArray[np.float64]:
        row_ids = pl.concat([rows.select("row_id") for rows in batches])["row_id"]
        usual = 3 + (row_ids.hash(seed=1) / 2**64).to_numpy()
        return np.where((row_ids == defect).to_numpy(), 60.0, usual)

    monkeypatch.setattr(Detector, "scores", scores)
    count = len(images_of("calibration", gallery))
    for budget, is_left_out in budget_of.items():
        alerts = gallery.config.alerts.model_copy(update={"image_budget": budget})
        dataset = Dataset(gallery.config.model_copy(update={"alerts": alerts}), gallery.paths)
        whole = Screened(gallery.window, {}, None)
        scored = score_calibration(gallery.bundle.detector, whole, dataset, 0.01, patches.height, count)
        assert scored.images is not None
        assert scored.screened.facts is not None
        if is_left_out:
            assert (len(scored.images), scored.images.max() < 5) == (count - 1, True)
            of_image = patches.select("row_id", image_id(gallery.config.identity))
            names = of_image.filter(pl.col("row_id") == defect)["image_id"]
            gone = of_image.filter(of_image["image_id"].is_in(names.implode()))["row_id"]
            assert set(scored.screened.row_ids["calibration"]) == set(gone)
            assert scored.screened.facts.message == f"{gone.len()} patches of 1 image left out of calibration"
        else:
            assert len(scored.images) == count
            assert "patches of 1 image of calibration would go, more than" in scored.screened.facts.message


def test_images_that_may_have_been_seen_are_not_measured(gallery: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_report, "seen_rows", lambda *_: None)
    report = report_images(published_days(gallery.paths), gallery, gallery.bundle, 3)
    assert report is not None
    assert (report.held_out, report.pixels) == (None, None)


def test_masks_that_cannot_be_used_are_named_and_the_others_measured(
    gallery: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    landing = list_landing(gallery)
    masks = dict(sorted(landing.masks.items()))
    assert len(masks) == BAD
    first, second, third, *_ = masks
    masks[first], masks[second] = tmp_path / "broken.png", tmp_path / "small.png"
    masks[first].write_bytes(b"")
    masks[second].write_bytes(png(np.zeros((10, 13), np.uint8)))
    del masks[third]
    monkeypatch.setattr(image_report, "list_landing", lambda _: replace(landing, masks=masks))
    monkeypatch.setattr(image_report, "landing_folder", lambda _: tmp_path)
    report = report_images(published_days(gallery.paths), gallery, gallery.bundle, 3)
    assert report is not None
    assert report.pixels is not None
    assert report.pixels.defects == BAD - 3
    messages = " ".join(record.message for record in caplog.records)
    assert "2 masks cannot be used, and the measures of pixels leave out their images; the first one: the" in messages
    assert "the measures of pixels leave out 1 anomalous image without a mask (test/square/042.png); land" in messages


def with_masks_in(folder: Path, masks: str, gallery: Fitted) -> Dataset:
    """Return the dataset with another landing folder, and another pattern of masks."""
    config = gallery.bundle.config
    assert config.images is not None
    source = config.source.model_copy(update={"path": str(folder)})
    images = config.images.model_copy(update={"masks": masks})
    return Dataset(config.model_copy(update={"source": source, "images": images}), gallery.paths)


@pytest.mark.parametrize("masks", [".masks/{defect}/{stem}_mask.png", "linked/{defect}/{stem}_mask.png"])
def test_masks_in_hidden_and_linked_folders_are_found(
    gallery: Fitted, tmp_path: Path, masks: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(gallery.paths.landing / "truth", tmp_path / ".masks")
    (tmp_path / "linked").symlink_to(gallery.paths.landing / "truth")
    dataset = with_masks_in(tmp_path, masks, gallery)
    assert list_landing(dataset).masks == {}
    report = report_images(published_days(gallery.paths), dataset, gallery.bundle, 3)
    assert report is not None
    assert report.pixels is not None
    assert report.pixels.defects == BAD
    assert caplog.messages == []


def test_masks_that_cannot_be_listed_are_not_called_missing(
    gallery: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = with_masks_in(tmp_path / "gone", "truth/{defect}/{stem}_mask.png", gallery)
    report = report_images(published_days(gallery.paths), dataset, gallery.bundle, 3)
    assert report is not None
    (message,) = caplog.messages
    assert message.startswith("the measures of pixels may lack images with a mask: no files have landed for 'shop': ")
    assert f"{tmp_path / 'gone'} does not exist" in message


def test_an_image_with_a_real_patch_needs_no_mask(
    gallery: Fitted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files, dataset = published_days(gallery.paths), as_dataset(gallery)
    before = report_images(files, dataset, gallery.bundle, 3)
    assert before is not None
    assert before.pixels is not None
    good = next(each.strangest for each in before.top_images if each.image_id.startswith("test/good/"))
    mark = Mark(kind=MarkKind.ROW, subject=good, state=MarkState.REAL, day=ALL_ROWS, rows={good: ALL_ROWS})
    monkeypatch.setattr(image_report, "marks_of", lambda _: [mark])
    after = report_images(files, dataset, gallery.bundle, 3)
    assert after is not None
    assert after.pixels is not None
    assert after.pixels.images == before.pixels.images - 1
    assert caplog.messages == []


def test_a_heat_map_divides_a_batch_that_does_not_fit(gallery: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = next(each_image([gallery.features(ALL_ROWS)], gallery.config))
    expected = heat_map(gallery.bundle.network, rows, gallery.config)
    whole = FittedNetwork.residual_maps

    def small(network: FittedNetwork, part: pl.DataFrame) -> npt.NDArray[np.float64]:
        if part.height > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(network, part)

    monkeypatch.setattr(FittedNetwork, "residual_maps", small)
    np.testing.assert_allclose(heat_map(gallery.bundle.network, rows, gallery.config), expected, rtol=1e-9)


def test_ranked_patches_have_boxes_in_pixels_of_their_image(gallery: Fitted, report: Report) -> None:
    ranked = pl.read_parquet(report.alerts).filter(pl.col("row_id").str.starts_with("test/square/"), "is_anomaly")
    assert ranked.height >= BAD
    inside = []
    for row in ranked.iter_rows(named=True):
        name, top, left = row["row_id"].split("|")
        index = int(Path(name).stem)
        box = row["boxes"][0]
        assert int(top) <= box["top"] < box["bottom"] <= int(top) + 12
        assert int(left) <= box["left"] < box["right"] <= int(left) + 12
        assert box["heat"] > (gallery.bundle.pixel_threshold or 0)
        square_top, square_left = 2 * index % 15, 3 * index % 20
        is_beside = box["bottom"] < square_top - 2 or box["top"] > square_top + 6
        inside.append(not is_beside and box["right"] >= square_left - 2 and box["left"] <= square_left + 7)
    assert np.mean(inside) > 0.9


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_maps_of_flagged_images_are_exported_at_full_size(gallery: Fitted, tmp_path: Path, kind: Any) -> None:
    images = read_images("shop", data=gallery.paths.root).filter("is_anomaly")
    paths = list(export_maps(gallery, gallery.bundle, 3, tmp_path, kind, None))
    assert {path.name for path in paths} == {
        f"{name.replace('/', '_')}-{hash_json(name)[:6]}.{kind}" for name in images["image_id"]
    }
    for path in paths:
        shape = Image.open(path).size[::-1] if kind == "png" else np.load(path).shape
        assert shape == (SHAPE.height, SHAPE.width)


def test_the_page_shows_heat_maps_with_a_legend(report: Report) -> None:
    page = report.page.read_text(encoding="utf-8")
    assert page.count('<figure class="row heat">') == 6
    assert page.count("heat map of test/square/") >= 5
    assert "Color scale of the heat maps, logarithmic: from 1 (black)" in page


def test_masks_need_the_path_of_the_image(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="belong to image files; add file to identity"):
        make_dataset(tmp_path, **{**SETTINGS, "identity": ["name", "top", "left"]})


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (
            "truth/{kind}/{stem}.png",
            r"uses \{kind\}, which is no named group of path; choose among defect, split, stem",
        ),
        ("truth/{defect}.png", r"lacks \{stem\}, so that all images would have one mask; add it"),
        ("truth/{stem.png", "has braces that do not match .*; correct it"),
    ],
)
def test_paths_of_masks_are_checked(tmp_path: Path, masks: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        make_dataset(tmp_path, **{**SETTINGS, "images": {**SETTINGS["images"], "masks": masks}})
