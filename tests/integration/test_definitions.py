"""The code location: its objects, its imports, and the commands of `dg` on it."""

import datetime as dt
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import yaml

from ae_pipeline.cli.demo import DEMOS
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.definitions import defs
from ae_pipeline.orchestration.assets.common import daily_partitions

BINARIES = Path(sys.executable).parent
PROJECT_ROOT = Path(__file__).parents[2]
IS_DAILY = {"flights": True, "textures": False, "shuttle": False}
TEAMS = {"flights": "flight-ops", "textures": "surface-inspection", "shuttle": "flight-control"}
JOBS = ("decide", "ingest", "train", "publish", "day", "intake", "rollback", "mark")


@pytest.fixture(scope="module")
def location() -> dg.Definitions:
    """Everything that Dagster loads."""
    return defs()


def test_the_code_location_defines_the_expected_objects(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    nodes = {
        node.key.to_user_string(): (
            sorted(parent.to_user_string() for parent in node.parent_keys),
            node.is_partitioned,
            sorted(check.name for check in node.check_keys),
        )
        for node in graph.asset_nodes
    }
    expected: dict[str, object] = {}
    for name, daily in IS_DAILY.items():
        expected |= {
            f"{name}/raw_data": ([], daily, ["identity_unique", "quarantine_share", "schema"]),
            f"{name}/features": ([f"{name}/raw_data"], daily, ["rows_kept"]),
            f"{name}/autoencoder": (
                [f"{name}/features"],
                False,
                [
                    "alerts_still_found",
                    "calibration_no_worse",
                    "each_kind_found_at_budget",
                    "faults_found_at_budget",
                    "finite_weights",
                    "latents_compatible",
                    "latents_not_collapsed",
                    "loss_fell",
                    "planted_faults_found",
                    "rankings_agree",
                    "reconstruction_no_worse",
                    "threshold_in_line",
                ],
            ),
            f"{name}/champion": ([f"{name}/autoencoder"], False, ["can_be_loaded"]),
            f"{name}/latent_features": (
                [f"{name}/champion", f"{name}/features"],
                daily,
                ["calibration_holds", "latents_not_collapsed", "rows_kept"],
            ),
            f"{name}/anomaly_report": (
                [f"{name}/latent_features"],
                daily,
                ["alert_budget", "completeness", "day_as_a_whole", "drift", "verdict"],
            ),
        }
    assert nodes == expected
    jobs = {job.name for job in location.resolve_all_job_defs() if not job.name.startswith("__")}
    assert jobs == {f"{name}_{job}" for name in IS_DAILY for job in JOBS}
    sensors = {sensor.name: sensor.default_status for sensor in location.sensors or []}
    assert sensors == {
        f"{name}_{sensor}": dg.DefaultSensorStatus.RUNNING if sensor == "failure" else dg.DefaultSensorStatus.STOPPED
        for name in IS_DAILY
        for sensor in ("landing", "rebuild", "failure")
    } | {"end_dead_runs": dg.DefaultSensorStatus.RUNNING}
    crons = {}
    for name in IS_DAILY:
        schedule = location.resolve_schedule_def(f"{name}_retrain")
        assert schedule.execution_timezone == ("America/New_York" if name == "flights" else "UTC")
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
        crons[name] = schedule.cron_schedule
    assert crons == {"flights": "0 3 * * 1", "textures": "0 4 * * 1", "shuttle": "0 5 * * 1"}


def test_flights_have_365_daily_partitions_in_new_york(location: dg.Definitions) -> None:
    partitions = location.resolve_asset_graph().get(dg.AssetKey(["flights", "raw_data"])).partitions_def
    assert partitions is not None
    keys = partitions.get_partition_keys()
    assert (len(keys), keys[0], keys[-1]) == (365, "2013-01-01", "2013-12-31")
    assert isinstance(partitions, dg.TimeWindowPartitionsDefinition)
    assert partitions.timezone == "America/New_York"


def test_every_asset_has_complete_metadata(location: dg.Definitions) -> None:
    assets = list(location.assets or [])
    assert len(assets) == 6 * len(IS_DAILY)
    for asset in assets:
        assert isinstance(asset, dg.AssetsDefinition)
        (spec,) = asset.specs
        dataset = spec.key.path[0]
        assert spec.group_name == dataset
        assert list(spec.owners) == [f"team:{TEAMS[dataset]}"]
        assert len(spec.kinds) >= 1
        assert "A row is " in (spec.description or "")
        assert asset.op.pool == dataset
        assert spec.code_version == "1"
        assert asset.op.retry_policy is None  # Dagster applies a policy to interrupts as well


def test_the_latent_table_goes_stale_after_fresh_hours(location: dg.Definitions) -> None:
    policy = location.resolve_asset_graph().get(dg.AssetKey(["flights", "latent_features"])).freshness_policy
    assert policy == dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(hours=48))


def test_definitions_readers_and_ingestion_import_no_library_that_they_do_not_need() -> None:
    code = (
        "import sys; from ae_pipeline.definitions import defs; defs();"
        "print([name for name in ('torch', 'mlflow', 'matplotlib', 'sklearn', 'pandas') if name in sys.modules]);"
        "import ae_pipeline.latents.read, ae_pipeline.lifecycle.ingest;"
        "print([name for name in ('torch', 'mlflow', 'matplotlib', 'sklearn', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "[]", ""]


def _dg(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `dg` in the project, with an instance of its own."""
    home = tmp_path / "dagster_home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    path = f"{BINARIES}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PATH": path, "VIRTUAL_ENV": str(BINARIES.parent)}
    command = [str(BINARIES / "dg"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment, check=False)


def test_dg_check_defs_passes(tmp_path: Path) -> None:
    done = _dg(tmp_path, "check", "defs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All component YAML validated successfully" in done.stdout + done.stderr


def test_dg_list_defs_shows_the_six_assets_of_each_dataset(tmp_path: Path) -> None:
    done = _dg(tmp_path, "list", "defs", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("raw_data", "features", "autoencoder", "champion", "latent_features", "anomaly_report"):
        assert all(f"{name}/{stage}" in done.stdout for name in IS_DAILY)


def test_workspace_and_pyproject_name_one_code_location() -> None:
    workspace = yaml.safe_load((PROJECT_ROOT / "workspace.yaml").read_text())
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    (entry,) = workspace["load_from"]
    assert entry["python_module"]["location_name"] == project["code_location_name"]
    assert entry["python_module"]["module_name"] == f"{project['root_module']}.definitions"


def test_the_makefile_names_every_demo_dataset() -> None:
    (line,) = [line for line in (PROJECT_ROOT / "Makefile").read_text().splitlines() if line.startswith("DEMOS := ")]
    assert line.split()[2:] == list(DEMOS) == list(IS_DAILY)


@pytest.mark.parametrize(
    ("zone", "first", "last", "days"),
    [
        ("America/New_York", "2024-03-09", "2024-03-11", 3),
        ("America/Sao_Paulo", "2018-11-03", "2018-11-05", 3),  # 4 November starts at 01:00
        ("Pacific/Apia", "2011-12-29", "2011-12-31", 3),  # 30 December does not exist; its partition stays empty
        ("Asia/Kolkata", "2024-03-09", "2024-03-11", 3),
    ],
)
def test_partitions_are_days_of_the_time_zone(zone: str, first: str, last: str, days: int) -> None:
    config = PipelineConfig.model_validate(
        {"dataset": "d", "identity": ["id"], "event_time": "t", "timezone": zone, "start": first, "end": last}
    )
    partitions = daily_partitions(config)
    assert partitions is not None
    keys = partitions.get_partition_keys_in_range(dg.PartitionKeyRange(first, last))
    assert (len(keys), keys[0], keys[-1]) == (days, first, last)
    windows = [partitions.time_window_for_partition_key(key) for key in (first, last)]
    expected = [dt.datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp() for day in (first, last)]
    assert [window.start.timestamp() for window in windows] == expected
