"""The command line in a process of its own: a sample of flights, a second run, late and bad files, and a rollback."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml
from deltalake import DeltaTable
from filelock import FileLock

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.lifecycle.ranges import contiguous
from ae_pipeline.monitoring.alerts import alerts_of
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.commands import run_command
from tests.support.project import SOURCE
from tests.support.shop import LOGS

DAYS = 24
ROWS = 90  # enough calibration rows for the alert budget
_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".csv": pl.read_csv,
    ".jsonl": pl.read_ndjson,
    ".parquet": pl.read_parquet,
}


def _command(root: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of `ae-pipeline` with data, models and Dagster's instance below a folder."""
    home = root / "dagster_home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}, **LOGS}))
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "AE_PIPELINE_DATA": str(root / "data"),
        "AE_PIPELINE_MLRUNS": str(root / "mlruns"),
    }
    return [sys.executable, "-m", "ae_pipeline.cli", *arguments], environment


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `ae-pipeline` and capture its output."""
    return run_command("ae-pipeline", *arguments, environment=_command(root)[1], folder=SOURCE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first rows of some days of flights have landed."""
    root = tmp_path_factory.mktemp("cli")
    landing = root / "data" / "landing" / "flights"
    assert land_flights(landing) == 365
    for index, path in enumerate(sorted(landing.iterdir())):
        lines = path.read_text().splitlines(keepends=True)
        if index < DAYS:
            path.write_text("".join(lines[: ROWS + 1]))
        else:
            path.unlink()
    return root


@pytest.fixture(scope="module")
def first_output(root: Path) -> str:
    """What the first run printed."""
    done = _run(root, "run", "flights")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_without_landed_files_fails(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "landing" / "flights"
    folder.parent.mkdir(parents=True)
    folder.write_text("")  # a file in place of the folder
    done = _run(tmp_path, "run", "flights")
    assert done.returncode == 1
    assert "move or delete it" in done.stderr


def test_page_says_that_it_waits_for_a_run(root: Path, first_output: str) -> None:
    day = re.findall(r"\d{4}-\d\d-\d\d", first_output)[0]
    command, environment = _command(root, "page", "flights", day)
    with FileLock(root / "data" / "locks" / "flights.lock"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert "waiting for another run of 'flights' to end" in process.stdout.readline()
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output.strip()[-15:]) == (0, f"{day}.html")


def test_deprecated_keys_are_printed_once(tmp_path: Path) -> None:
    """Dagster hides deprecation warnings while it loads definitions; users must see ours."""
    code = """
import warnings
from ae_pipeline.common.deprecation import show_deprecations
from ae_pipeline.config.service import GateConfig

show_deprecations()
for _ in range(2):
    with warnings.catch_warnings(action="ignore"):
        GateConfig.model_validate({"most_worse": 1.2})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.count("\n") == 1
    assert "'most_worse' in section gate of the YAML is deprecated" in done.stderr
    assert "write 'max_error_increase'" in done.stderr


def test_the_history_is_empty_before_the_first_run(tmp_path: Path) -> None:
    done = _run(tmp_path, "history", "flights")
    assert done.stdout == "No version of 'flights' has served so far; `ae-pipeline run flights` trains one.\n"


def test_the_first_run_ends_with_a_summary(root: Path, first_output: str) -> None:
    assert f"{DAYS * ROWS:,} in {DAYS} files" in first_output
    assert "in quarantine    0 (every row satisfies the schema contract)" in first_output
    assert re.search(r"model            flights version 1, MLflow run [0-9a-f]{32}", first_output)
    assert f"latent table     {root / 'data' / 'latents' / 'flights'}" in first_output
    assert f"report           {root / 'data' / 'reports' / 'flights' / 'report.html'}" in first_output
    assert len(re.findall(r"^ +\d+\. .*\(score ", first_output, flags=re.MULTILINE)) == 10
    assert len(re.findall(r"^     .+ expected .+$", first_output, flags=re.MULTILINE)) == 10
    assert "ae-pipeline ui" in first_output
    assert "epoch 1 of 6" in first_output


def test_score_gives_the_scores_of_the_published_table(root: Path, first_output: str) -> None:
    landed, outs = (
        root / "data" / "landing" / "flights" / "flights_2013-01-05.csv",
        [root / f"scores{s}" for s in _READERS],
    )
    published = pl.read_delta(str(root / "data" / "latents" / "flights"))
    for out in outs:
        done = _run(root, "score", "flights", str(landed), "--out", str(out))
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].split() == ["row", "row_id", "score", "p_value", "reason"]
        summary = rf"{ROWS} rows: {ROWS} scored under version 1 of 'flights', \d+ flagged; 0 rejected"
        assert re.fullmatch(summary, lines[-2])
        assert lines[-1] == f"Written: {out}"
        scored = _READERS[out.suffix](out).select("row_id", "score", "p_value", "is_anomaly").sort("row_id")
        same = published.filter(pl.col("row_id").is_in(scored["row_id"])).select(scored.columns).sort("row_id")
        assert scored.height == same.height == ROWS
        assert scored["row_id"].equals(same["row_id"])
        assert scored["is_anomaly"].equals(same["is_anomaly"])
        for name in ("score", "p_value"):
            assert scored[name].to_list() == pytest.approx(same[name].to_list(), rel=1e-9, abs=1e-9)


def test_score_writes_rejected_rows_beside_the_scores(root: Path, first_output: str, tmp_path: Path) -> None:
    lines = (root / "data" / "landing" / "flights" / "flights_2013-01-05.csv").read_text().splitlines()
    file, out = tmp_path / "rows.csv", tmp_path / "scores.csv"
    file.write_text("\n".join([*lines[:3], lines[3].replace("2013", "year", 1), lines[4] + ",surplus"]) + "\n")
    done = _run(root, "score", "flights", str(file), "--version", "1", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 rows: 2 scored under version 1 of 'flights'" in done.stdout
    assert re.search(r"^row 4 rejected: .+ is not .+$", done.stdout, re.MULTILINE)
    assert pl.read_csv(out)["row_number"].to_list() == [2, 3]
    rejected = pl.read_csv(tmp_path / "scores.rejected.csv")
    assert rejected["row_number"].to_list() == [4, 5]
    assert rejected["rule"][1] == "columns"
    file.write_text("\n".join(lines[:3]) + "\n")
    assert _run(root, "score", "flights", str(file), "--out", str(out)).returncode == 0
    assert not (tmp_path / "scores.rejected.csv").exists()


def test_errors_of_score_are_short(root: Path, first_output: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("carrier,flight\nUA,1\n")
    cases = (
        ((), "SchemaError: the columns of 'flights' have changed: rows.csv lacks "),
        (("--version", "7"), "ConfigError: 'flights' has no version 7; choose one of 1"),
        (("--out", "scores.txt"), "ConfigError: --out scores.txt has no known suffix; choose one of .csv, .jsonl"),
        (("--out", str(file)), "would overwrite the rows to score; choose another file"),
    )
    for arguments, message in cases:
        done = _run(root, "score", "flights", str(file), *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    done = _run(root, "score", "shuttle", str(file))
    assert (done.returncode, "'shuttle' has no champion" in done.stderr) == (1, True)


def test_a_second_run_does_no_work(root: Path, first_output: str) -> None:
    previous = {path: path.stat().st_mtime_ns for path in (root / "data").rglob("*.parquet")}
    assert len(previous) >= 3 * DAYS
    done = _run(root, "run", "flights")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"nothing new: all {DAYS} days are the same as in the last training" in done.stdout
    assert "Nothing to do: every day is published and reported on under version 1" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (root / "data").rglob("*.parquet")} == previous


def test_a_third_run_works_only_on_a_late_file(root: Path, first_output: str) -> None:
    landing = root / "data" / "landing" / "flights"
    source = landing / "flights_2013-01-05.csv"
    lines = source.read_text().splitlines(keepends=True)
    cells = lines[1].split(",")
    cells[10] = "9999"  # another flight number makes it another flight
    (landing / "late.csv").write_text(lines[0] + ",".join(cells))
    done = _run(root, "run", "flights")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flights_ingest 2013-01-05" in done.stdout
    assert "1 new or changed day since the last training, fewer than min_new_rows=1,000" in done.stdout
    table = DeltaTable(root / "data" / "latents" / "flights")
    assert pl.read_parquet(table.file_uris()).height == DAYS * ROWS + 1


def test_a_file_with_other_columns_blocks_no_other_file(root: Path, first_output: str) -> None:
    landing = root / "data" / "landing" / "flights"
    lines = (landing / "flights_2013-01-09.csv").read_text().splitlines(keepends=True)
    cells = lines[1].split(",")
    cells[10] = "9998"
    (landing / "good.csv").write_text(lines[0] + ",".join(cells))
    (landing / "bad.csv").write_text("carrier,flight\nUA,1\n")
    done = _run(root, "run", "flights")
    (landing / "bad.csv").unlink()
    assert done.returncode == 0
    assert (
        "files refused    1, the first one bad.csv: the columns of 'flights' have changed: bad.csv lacks" in done.stdout
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "flights_ingest 2013-01-09" in done.stdout
    assert "flights_publish 2013-01-09" in done.stdout
    assert [alert.event for alert in alerts_of(DatasetPaths(root / "data", "flights"))] == ["contract_broken"]
    assert "the landed file bad.csv is refused: the columns of 'flights'" in done.stdout.splitlines()[-1]
    after = _run(root, "run", "flights")
    assert "flights_intake" in after.stdout  # the file is gone
    assert "files refused" not in after.stdout
    assert "refused" not in after.stdout.splitlines()[-1]


def test_a_port_in_use_is_an_error_before_any_server_starts(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = _run(root, "ui", "--port", str(port))
    assert done.returncode == 1
    assert (
        f"ConfigError: port {port} of 127.0.0.1 is in use; stop the server there, or choose another port with --port"
        in done.stderr
    )


def test_an_unknown_dataset_is_named_with_those_there_are(root: Path) -> None:
    done = _run(root, "run", "orders")
    assert done.returncode == 1
    assert "ConfigError: no dataset 'orders' in the defs folder; it has flights, shuttle, textures" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("days", "ranges"),
    [
        ([], []),
        (["all"], [("all", "all")]),
        (["2024-02-28"], [("2024-02-28", "2024-02-28")]),
        (["2024-02-28", "2024-02-29", "2024-03-01"], [("2024-02-28", "2024-03-01")]),
        (["2024-01-01", "2024-01-03"], [("2024-01-01", "2024-01-01"), ("2024-01-03", "2024-01-03")]),
    ],
)
def test_consecutive_days_make_one_range(days: list[str], ranges: list[tuple[str, str]]) -> None:
    assert list(contiguous(days)) == ranges


def test_a_rollback_moves_model_table_reports_and_history(root: Path, first_output: str) -> None:
    models = "key:flights/autoencoder or key:flights/champion"
    train = ("dagster", "asset", "materialize", "-m", "ae_pipeline.definitions", "--select", models)
    done = run_command(*train, environment=_command(root)[1], folder=SOURCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _run(root, "run", "flights").returncode == 0
    table = DeltaTable(root / "data" / "latents" / "flights")
    assert set(pl.read_delta(table)["model_version"]) == {2}
    done = _run(root, "rollback", "flights", "1", "--why", "a test of the rollback")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"version 1 serves; its table has \d+ days, 0 of them scored now; table version \d+", done.stdout)
    assert re.search(r"flights_publish .*anomaly_report .* rows flagged", done.stdout, re.DOTALL)
    table.update_incremental()
    assert set(pl.read_delta(table)["model_version"]) == {1}
    summary = json.loads((root / "data" / "reports" / "flights" / "summary.json").read_text())
    assert summary["model_version"] == 1
    lines = _run(root, "history", "flights").stdout.splitlines()
    assert re.search(r"version 1 promoted, by .+, command line: it passed the gate$", lines[0])
    assert re.search(r"version 2 promoted, replaces version 1, by somebody in the Dagster UI: ", lines[1])
    assert re.search(r"rolled back to version 1, replaces version 2, by .+: a test of the rollback$", lines[2])
    assert len(lines) == 3


def test_a_rollback_to_an_unknown_version_is_refused(root: Path, first_output: str) -> None:
    done = _run(root, "rollback", "flights", "77", "--why", "a mistake")
    assert done.returncode == 1
    assert "'flights' has no version 77 that can serve; choose among 1" in done.stderr
    assert "Traceback" not in done.stderr
    # No run starts, so that nobody is alerted of a typing error.
    assert not any("flights_rollback" in raised.message for raised in alerts_of(DatasetPaths(root / "data", "flights")))
