"""Image files from the landing folder to the page of a day, with a thumbnail for each listed row."""

import base64
import datetime as dt
import html
import io
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ae_pipeline.cli.data_files import data_app
from ae_pipeline.cli.guard import Guard, access
from ae_pipeline.cli.main import main
from ae_pipeline.config.columns import ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.build import build_features_day, feature_columns
from ae_pipeline.features.split import cut_window
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.latents.publish import publish
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.build import build_report
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from tests.support.images import waves
from tests.support.served import TOKEN, Versions

pytestmark = pytest.mark.slow

ORIGIN, TODAY = "http://127.0.0.1:8000", dt.date(2024, 12, 31)
DAYS, A_DAY, SPOTTED = 8, 10, "press/2024-01-08/05.png"
SHAPE = ImageShape(height=12, width=16, channels=1, dtype="uint8")
_ROW = re.compile(r'<td data-value="([^"]+)">(?:<img class="thumbnail" src="data:image/png;base64,([^"]+)" alt="">)?')


def land(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Write PNG files of normal images and one with a spot, and return the pixels by the path of the file."""
    images = waves(DAYS * A_DAY, 0, SHAPE)[..., 0]
    names = [f"press/2024-01-{day + 1:02d}/{number:02d}.png" for day in range(DAYS) for number in range(A_DAY)]
    landed = dict(zip(names, images, strict=True))
    landed[SPOTTED][3:9, 4:10] = 255 * (np.indices((6, 6)).sum(0) % 2)
    for name, pixels in landed.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return landed


def test_the_page_of_a_day_shows_what_landed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PipelineConfig.model_validate(
        {
            "dataset": "press",
            "identity": ("file",),
            "event_time": "taken_on",
            "start": "2024-01-01",
            "images": {"path": r"(?P<taken_on>[0-9-]{10})/"},
            "model": {"architecture": "conv", "latent_dim": 4, "channels": (4,)},
            "training": {"epochs": 5, "device": "cpu"},
            "alerts": {"budget": 0.1},
        }
    )
    dataset = Dataset(config, DatasetPaths(tmp_path, "press"))
    landed = land(dataset.paths.landing)
    ingested = ingest(dataset, TODAY)
    days = ingested.ledger.days
    content = {}
    for day in days:
        build_raw_day(day, ingested, dataset.paths)
        build_features_day(day, dataset, ingested.contract)
        content[day] = read_facts(dataset.paths.features(day))["content_hash"]
    columns = feature_columns(config, ingested.contract)
    bundle, _ = fit_bundle(dataset, columns, cut_window(content, config, 0, dict.fromkeys(days, A_DAY)))
    publish(days, dataset, bundle, 1, {})
    build_report(days, dataset, bundle, 1, "run")

    version = TrackedVersion("press", 1, "run", {})
    monkeypatch.setattr("ae_pipeline.lifecycle.publish.load_table_model", lambda *_: (version, bundle))
    app = data_app(tmp_path, {"press": dataset}, Versions([version], 1))
    client = TestClient(Guard(app, access(TOKEN, 8000, ORIGIN)), base_url=ORIGIN, headers={"Accept": "text/html"})
    assert client.get(f"/?token={TOKEN}").status_code == 200
    for day in days[-2:]:
        page = client.get(f"/reports/press/days/{day}.html")
        assert page.status_code == 200
        assert "img-src data:" in page.headers["content-security-policy"]
        shown = {name: thumbnail for row, thumbnail in _ROW.findall(page.text) if day in (name := html.unescape(row))}
        assert set(shown) == {name for name in landed if day in name}
        for name, thumbnail in shown.items():
            with Image.open(io.BytesIO(base64.b64decode(thumbnail))) as picture:
                gray = np.asarray(picture.convert("L")).astype(np.float64)
            assert gray.shape == landed[name].shape
            assert np.corrcoef(gray.ravel(), landed[name].ravel())[0, 1] > 0.99, name
    assert next(iter(shown)) == SPOTTED, "the highest score is first"


@pytest.mark.parametrize("day", [None, "2024-03-01"])
def test_a_command_that_writes_no_heat_map_says_why(
    day: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Path] = []
    project = SimpleNamespace(
        dataset=lambda _: SimpleNamespace(paths=SimpleNamespace(reports=Path("reports"))),
        workspace=SimpleNamespace(locked=lambda _: nullcontext()),
        tracker=None,
    )
    monkeypatch.setattr("ae_pipeline.cli.main.Project.load", lambda: project)
    monkeypatch.setattr("ae_pipeline.lifecycle.publish.load_table_model", lambda *_: (SimpleNamespace(version=1), None))
    monkeypatch.setattr("ae_pipeline.reports.heat_pictures.export_maps", lambda *_: iter(written))
    command = ["page", "shop", *([day] if day else []), "--maps", "png"]
    assert main(command) == 0
    of_day = f"of {day} " if day else ""
    assert capsys.readouterr().err.endswith(f"no image {of_day}is flagged, so no heat map is written\n")
    written.append(Path("a.png"))
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("a.png\n")
    assert "no image" not in captured.err
