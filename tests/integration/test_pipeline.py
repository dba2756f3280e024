"""The whole pipeline for a dataset that consists of a YAML file and a folder of CSV files."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox
from deltalake import DeltaTable
from pydantic import BaseModel
from sklearn.metrics import roc_auc_score

from ae_pipeline.cli.project import Project
from ae_pipeline.cli.summary import summarize
from ae_pipeline.common.errors import PipelineError, TrainingError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import LABEL
from ae_pipeline.lifecycle.plan import plan_training, settings_hash
from ae_pipeline.monitoring.alerts import alerts_of
from ae_pipeline.orchestration.component import ASSETS, AutoencoderPipeline
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.reports.page import by_reason
from tests.support.shop import ATTRIBUTES, DAYS, ROWS, Shop, make_shop, orders_csv, reject_every_version


def project_of(shop: Shop) -> Project:
    """Return the project as the command line sees it."""
    return Project(shop.defs, shop.workspace, {"orders": shop.dataset}, shop.instance)


PUBLISHED = DAYS[:-1]
"""Days that `serving_shop` has published."""


def test_a_dataset_needs_only_a_yaml_file(complete_shop: Shop) -> None:
    table = DeltaTable(complete_shop.root / "data" / "latents" / "orders")
    rows = pl.read_parquet(table.file_uris())
    assert rows.height == len(DAYS) * ROWS
    assert rows["date"].n_unique() == len(DAYS)
    assert {"row_id", "z_000", "z_001", "score", "p_value", "is_anomaly"} <= set(rows.columns)
    assert (complete_shop.root / "data" / "reports" / "orders" / "report.html").read_text().count("orders") > 0


def test_each_partition_of_a_range_has_its_own_metadata(complete_shop: Shop) -> None:
    for stage in ("raw_data", "features", "latent_features", "anomaly_report"):
        done = complete_shop.instance.get_materialized_partitions(dg.AssetKey(["orders", stage]))
        assert done == set(DAYS)
        hashes = {day: complete_shop.metadata(stage, day)["content_hash"] for day in DAYS[:5]}
        assert len(set(hashes.values())) == 5
        assert complete_shop.metadata(stage, DAYS[0])["dagster/partition_row_count"] == ROWS
    raw = complete_shop.metadata("raw_data")
    assert raw["dagster/row_count"] == len(DAYS) * ROWS
    assert str(raw["dagster/uri"]).startswith("file://")
    described = {column.name: column.description for column in raw["dagster/column_schema"].columns}
    assert described.keys() >= {"order_id", "price", "row_id"}
    assert described["row_id"] == "Identity of the row: order_id."
    assert described["price"].startswith("Type number")
    assert all(described.values())


def test_materializations_show_plots_rows_and_links(complete_shop: Shop) -> None:
    workspace, version = complete_shop.workspace, complete_shop.workspace.tracker().version("orders", CHAMPION)
    assert version
    trained, published, reported = (
        complete_shop.metadata(stage, partition)
        for stage, partition in (("autoencoder", None), ("latent_features", DAYS[-1]), ("anomaly_report", DAYS[-1]))
    )
    experiment = workspace.tracker().experiment("orders")
    assert (
        trained["mlflow"]
        == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{version.run_id}?workflowType=machine_learning"
    )
    assert reported["mlflow"] == published["mlflow"] == "http://127.0.0.1:5000/#/models/orders/versions/1"
    assert reported["report"] == "http://127.0.0.1:3001/reports/orders/report.html"
    pictures = [trained[f"{name}_plot"] for name in ("loss", "scores", "latents", "calibration")]
    for picture in (*pictures, reported["scores_plot"], reported["latents_plot"]):
        assert re.match(r"!\[[A-Z][a-z ]+\]\(data:image/png;base64,[\w+/=]{1000,}\)\n\n\S", str(picture))
    # A run over a range stores its metadata for each partition, but pictures only for the newest.
    assert not {"latents_plot", "scores_plot", "verdict"} & complete_shop.metadata("anomaly_report", DAYS[0]).keys()
    assert str(trained["model_card"]).startswith("# orders, model version 1")
    assert str(reported["verdict"]).startswith(f"**{DAYS[-1]}**: ")
    since = json.loads((complete_shop.paths.reports / "summary.json").read_text())["verdict"]["since"]
    assert reported["verdict_since"] == since != ""
    assert workspace.tracker().client.get_run(version.run_id).data.tags["verdict since"] == since
    assert f" since {'this day' if since == DAYS[-1] else since}: " in str(reported["newest_verdict"])
    ranked = pl.read_parquet(complete_shop.paths.reports / "alerts.parquet").head(10)
    shown = [line.split(" | ") for line in str(reported["strangest_rows_of_run"]).splitlines()[2:]]
    assert [line[0].removeprefix("| ") for line in shown] == ranked["row_id"].to_list()
    assert [line[2] for line in shown] == [f"{score:.1f}" for score in ranked["score"]]


def test_the_mlflow_run_has_plots_card_and_link(complete_shop: Shop) -> None:
    tracker = complete_shop.workspace.tracker()
    version = tracker.version("orders", CHAMPION)
    assert version
    run = tracker.client.get_run(version.run_id)
    artifacts = {entry.path for entry in tracker.client.list_artifacts(version.run_id)}
    assert artifacts >= {"loss.png", "scores.png", "latents.png", "calibration.png", "model_card.md", "window.json"}
    note = run.data.tags["mlflow.note.content"]
    assert f"(http://127.0.0.1:3000/runs/{run.data.tags['dagster_run_id']})" in note
    assert run.inputs is not None
    (dataset_input,) = run.inputs.dataset_inputs
    assert dataset_input.dataset.name == "orders"


def test_every_check_passes_and_states_what_it_found(complete_shop: Shop) -> None:
    graph = complete_shop.defs.resolve_asset_graph()
    latest = complete_shop.instance.event_log_storage.get_latest_asset_check_execution_by_key(
        list(graph.asset_check_keys)
    )
    assert len(latest) == 25
    without_number = {}
    for key, record in latest.items():
        assert record.evaluation is not None
        assert record.evaluation.passed, record.evaluation.description
        description = str(record.evaluation.description)
        if not re.search(r"\d", description):
            without_number[key.name] = description
    not_compared = "not compared: no version serves so far"
    assert without_number == {
        "alerts_still_found": not_compared,
        "calibration_no_worse": not_compared,
        "faults_found_at_budget": not_compared,
        "each_kind_found_at_budget": not_compared,
        "latents_compatible": "no version serves so far; these latents are the first",
        "planted_faults_found": not_compared,
        "rankings_agree": not_compared,
        "reconstruction_no_worse": not_compared,
        "threshold_in_line": not_compared,
    }


def test_the_data_version_of_champion_is_the_model_version(complete_shop: Shop) -> None:
    event = complete_shop.instance.get_latest_materialization_event(dg.AssetKey(["orders", "champion"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert (event.asset_materialization.tags or {})["dagster/data_version"] == "1"


def test_the_schedule_skips_when_nothing_is_new(complete_shop: Shop) -> None:
    assert complete_shop.schedule_answer() == "nothing new: all 24 days are the same as in the last training"


def test_the_schedule_skips_without_features(shop: Shop) -> None:
    assert "there are no features yet" in shop.schedule_answer()


def test_the_schedule_skips_while_a_training_runs(shop: Shop) -> None:
    run = dg.DagsterRun(job_name="orders_train", status=dg.DagsterRunStatus.STARTED)
    shop.instance.add_run(run)
    assert shop.schedule_answer() == f"a training is active: run {run.run_id}"


def test_a_corrected_day_replaces_one_file_of_the_table(serving_shop: Shop) -> None:
    table = serving_shop.root / "data" / "latents" / "orders"
    previous = set(DeltaTable(table).file_uris())
    serving_shop.land(DAYS[3], orders_csv(DAYS[3], rows=ROWS - 1))
    assert serving_shop.run("day", DAYS[3]).success
    after = set(DeltaTable(table).file_uris())
    assert len(previous - after) == len(after - previous) == 1
    assert f"/{DAYS[3][:7]}/" in next(iter(after - previous))
    assert pl.read_parquet(list(after)).height == len(PUBLISHED) * ROWS - 1
    assert serving_shop.schedule_answer() == (
        "39 rows on 1 new or changed day since the last training, fewer than min_new_rows=50"
    )
    serving_shop.land(DAYS[4], orders_csv(DAYS[4], rows=ROWS - 2))
    assert serving_shop.run("ingest", DAYS[4]).success
    assert serving_shop.schedule_answer() == "77 rows on 2 new or changed days since the last training"


def test_calibration_holds_checks_all_newer_days(shop: Shop) -> None:
    for day in DAYS[:-2]:
        shop.land(day)
    assert shop.run("ingest", DAYS[0], DAYS[-3]).success
    assert shop.run("train").success
    assert shop.run("publish", DAYS[0], DAYS[-3]).success
    for day in DAYS[-2:]:
        shop.land(day)
        assert shop.run("day", day).success
    for day in DAYS[-1], DAYS[0]:
        done = shop.run("publish", day)
        (check,) = [each for each in done.get_asset_check_evaluations() if each.check_name == "calibration_holds"]
        assert (check.description or "").startswith(f"{4 * ROWS} rows after the calibration days")


def test_a_run_with_nothing_new_changes_no_file(serving_shop: Shop) -> None:
    files = {path: path.stat().st_mtime_ns for path in (serving_shop.root / "data").rglob("*.parquet")}
    assert len(files) >= 3 * len(PUBLISHED)  # raw data, features, and reports
    version = DeltaTable(serving_shop.root / "data" / "latents" / "orders").version()
    assert serving_shop.run("day", PUBLISHED[0], PUBLISHED[-1]).success
    again = {path: path.stat().st_mtime_ns for path in (serving_shop.root / "data").rglob("*.parquet")}
    assert {path for path in files if path.name != "alerts.parquet" and files[path] != again.get(path)} == set()
    assert again.keys() == files.keys()
    assert DeltaTable(serving_shop.root / "data" / "latents" / "orders").version() == version


def test_worker_processes_publish_the_same_table(serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    table = serving_shop.root / "data" / "latents" / "orders"
    expected = {path.relative_to(table): path.read_bytes() for path in table.glob("v*/**/*.parquet")}
    assert len(expected) == 2
    shutil.rmtree(table)
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "processes")
    assert serving_shop.run("publish", DAYS[0], PUBLISHED[-1]).success
    assert {path.relative_to(table): path.read_bytes() for path in table.glob("v*/**/*.parquet")} == expected
    copies = serving_shop.root / "data" / "cache" / "bundles" / "orders"
    assert len(list(copies.iterdir())) == 1


def test_changed_columns_refuse_the_file_with_a_remedy(serving_shop: Shop) -> None:
    serving_shop.land(DAYS[5], orders_csv(DAYS[5]).replace("price", "amount", 1))
    result = serving_shop.run("ingest", DAYS[5])
    assert result.success
    (failed,) = [each for each in result.get_asset_check_evaluations() if not each.passed]
    assert failed.check_name == "schema"
    for part in ("1 landed files are refused", "lacks 'price'", "has unknown 'amount'", "optional: true"):
        assert part in str(failed.description)
    assert [alert.event for alert in alerts_of(serving_shop.paths)] == ["contract_broken"]
    assert pl.read_parquet(serving_shop.root / "data" / "raw" / "orders" / f"{DAYS[5]}.parquet").height == ROWS


def test_a_missing_champion_fails_with_a_remedy(shop: Shop) -> None:
    shop.land(DAYS[0])
    assert shop.run("ingest", DAYS[0]).success
    result = shop.run("publish", DAYS[0])
    assert shop.failure_message(result) == "'orders' has no champion; materialize autoencoder and champion first"


def test_a_rejected_challenger_leaves_the_champion(serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    reject_every_version(monkeypatch)
    assert serving_shop.run("train").success
    assert serving_shop.metadata("autoencoder")["model_version"] == 2
    compared = serving_shop.metadata("autoencoder")["latents_beside_version_1"]
    assert "correlation of z_001 without a map" in str(compared)
    champion = serving_shop.metadata("champion")
    assert (champion["model_version"], champion["promoted"]) == (1, False)
    assert "challenger 2 rejected: loss_fell: it rose" in str(champion["decision"])


def test_an_unknown_key_is_reported_with_its_file() -> None:
    attributes = {**ATTRIBUTES, "identiy": ["order_id"]}
    with create_defs_folder_sandbox() as sandbox:
        sandbox.scaffold_component(
            component_cls=AutoencoderPipeline,
            defs_path="orders",
            defs_yaml_contents={
                "type": "ae_pipeline.orchestration.component.AutoencoderPipeline",
                "attributes": attributes,
            },
        )
        with pytest.raises(Exception, match="orders") as caught, sandbox.build_all_defs():
            pass
    text = ""
    error: BaseException | None = caught.value
    while error:
        text, error = text + str(error), error.__cause__ or error.__context__
    assert "defs.yaml" in text
    assert "attributes.identiy" in text
    assert "Extra inputs are not permitted" in text


def test_the_scaffolded_yaml_is_complete_commented_and_valid() -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(component_cls=AutoencoderPipeline, defs_path="web_orders")
        text = (folder / "defs.yaml").read_text()
        assert text.count("#") > 10
        assert yaml.safe_load(text)["attributes"]["dataset"] == "web_orders"
        with sandbox.load_component_and_build_defs(folder) as (component, _):
            assert isinstance(component, AutoencoderPipeline)
            keys = {build(component.config).key.to_user_string() for build in ASSETS}
    assert len(keys) == 6
    assert "web_orders/latent_features" in keys


def test_commented_settings_of_the_scaffold_exist() -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(component_cls=AutoencoderPipeline, defs_path="web_orders")
        text = (folder / "defs.yaml").read_text()
    offered = []
    section: type[BaseModel] = PipelineConfig
    for line in text.split("attributes:\n")[1].splitlines():
        if head := re.match(r"  (\w+):$", line):
            annotation = PipelineConfig.model_fields[head[1]].annotation
            assert isinstance(annotation, type)
            section = annotation
        elif setting := re.match(r"( +)# (\w+: .*)$", line):
            offered.append(setting[2])
            fields = (PipelineConfig if setting[1] == "  " else section).model_fields
            assert set(yaml.safe_load(setting[2])) <= set(fields), line
    names = {line.split(":")[0] for line in offered}
    assert {"images", "label", "variational", "loss", "only_normal", "corruption", "derive", "webhook"} <= names
    attributes = yaml.safe_load(text)["attributes"]
    settings = {name: setting for line in offered for name, setting in yaml.safe_load(line).items()}
    images = {name: settings[name] for name in ("images", "label")}
    model = {**attributes["model"], "architecture": "conv", "variational": True, "loss": settings["loss"]}
    training = {**attributes["training"], "only_normal": True, "corruption": settings["corruption"]}
    identity = ["file", "top", "left"]
    changed = {**attributes, **images, "model": model, "training": training, "identity": identity}
    config = PipelineConfig.model_validate(changed)
    assert config.images is not None
    assert config.images.patch == 32


def test_changed_settings_make_a_training_due(complete_shop: Shop) -> None:
    config = PipelineConfig.model_validate({**ATTRIBUTES, "alerts": {**ATTRIBUTES["alerts"], "budget": 0.02}})
    plan = plan_training(complete_shop.workspace.dataset(config), complete_shop.workspace.tracker())
    (work,) = plan.work
    keys = "model, training, alert budget, time zone, or columns"
    assert work.reason == f"the settings of {keys} changed since the last training"


def test_report_rows_is_no_reason_to_train() -> None:
    config = PipelineConfig.model_validate(ATTRIBUTES)
    longer = config.model_copy(update={"alerts": config.alerts.model_copy(update={"report_rows": 7})})
    assert settings_hash(longer) == settings_hash(config)


@pytest.fixture
def shop_without_event_time(tmp_path: Path) -> Iterator[Shop]:
    """A project without data, whose dataset has no event time."""
    daily = ("event_time", "start", "end", "training")
    attributes = {key: value for key, value in ATTRIBUTES.items() if key not in daily}
    yield from make_shop(tmp_path, {**attributes, "training": {"epochs": 2, "batch_size": 128}})


def test_a_dataset_without_event_time_has_no_partitions(shop_without_event_time: Shop) -> None:
    shop = shop_without_event_time
    for day in DAYS:
        shop.land(day)
    assert shop.run("ingest").success
    assert shop.run("train").success
    assert shop.run("publish").success
    rows = pl.read_parquet(DeltaTable(shop.paths.latents).file_uris())
    assert rows.height == len(DAYS) * ROWS
    assert rows["event_time"].null_count() == rows.height


def test_the_log_of_files_without_event_time_names_no_days(
    shop_without_event_time: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop_without_event_time.land(DAYS[0])
    assert shop_without_event_time.run("intake").success
    assert caplog.messages[-1].endswith(" - 1 file read")


FRAUDS = 4
"""Known frauds on each day, in addition to the `ROWS` normal orders."""


def orders_with_fraud(day: str) -> str:
    """Return the orders of a day as CSV. The last ones are known frauds with unrelated prices."""
    head, *lines = orders_csv(day, ROWS + FRAUDS).splitlines()
    marked = [f"{line},0" for line in lines[:ROWS]]
    marked += [",".join([*line.split(",")[:-1], str(900 + 50 * index), "1"]) for index, line in enumerate(lines[ROWS:])]
    return "\n".join([f"{head},fraud", *marked]) + "\n"


@dataclass
class LabeledRun:
    """A dataset without event time whose frauds are known, after a run of each job.

    Attributes:
        shop: The project.
        config: Its configuration.
        out: What the jobs printed to stdout.
        err: What the jobs printed to stderr.
    """

    shop: Shop
    config: PipelineConfig
    out: str
    err: str


@pytest.fixture(scope="module")
def labeled_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabeledRun]:
    """A run of each job on a dataset with known frauds."""
    attributes = {
        **{key: value for key, value in ATTRIBUTES.items() if key not in {"event_time", "start", "end"}},
        "exclude": ["order_id", "created_at"],
        "label": "fraud = 1",
        "training": {"epochs": 20, "batch_size": 128, "learning_rate": 0.01, "only_normal": True},
        "alerts": {"budget": 0.02},
    }
    out, err = io.StringIO(), io.StringIO()
    for shop in make_shop(tmp_path_factory.mktemp("fraud"), attributes):
        for day in DAYS:
            shop.land(day, orders_with_fraud(day))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert all(shop.run(job).success for job in ("ingest", "train", "publish"))
        yield LabeledRun(shop, PipelineConfig.model_validate(attributes), out.getvalue(), err.getvalue())


def test_messages_without_event_time_count_rows(labeled_run: LabeledRun, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = len(DAYS) * (ROWS + FRAUDS)
    assert f"raw_data         {rows:,} rows, written now; 0 rows in quarantine" in labeled_run.out
    assert f"features         {rows:,} rows, written now\n" in labeled_run.out
    sizes = labeled_run.shop.metadata("autoencoder")["rows"]
    gate = len(DAYS) * ROWS - sum(sizes.values())
    parts = "training on {train} rows, validating on {validation}, calibrating on {calibration}".format(**sizes)
    assert f"{parts}; {gate} left for the gate\n" in labeled_run.out
    assert gate > 0
    assert f"{rows:,} rows under model version 1, " in labeled_run.out
    assert not re.search(r"\bdays?\b|\ball\b", labeled_run.out)
    assert not {"train_days", "validation_days", "calibration_days"} & labeled_run.shop.metadata("autoencoder").keys()
    dataset, tracker = labeled_run.shop.workspace.dataset(labeled_run.config), labeled_run.shop.workspace.tracker()
    assert (
        plan_training(dataset, tracker).idle == f"nothing new: all {rows:,} rows are the same as in the last training"
    )
    monkeypatch.setattr("ae_pipeline.lifecycle.plan.features_content", lambda _: {"all": ("changed", 30)})
    assert plan_training(dataset, tracker).idle == (
        "30 rows with new or changed ones since the last training, fewer than min_new_rows=50"
    )


def test_a_training_prints_its_first_and_last_epoch(labeled_run: LabeledRun) -> None:
    epochs = [int(number) for number in re.findall(r"epoch (\d+) of 20: loss", labeled_run.out)]
    done = labeled_run.shop.metadata("autoencoder")["epochs"]
    assert (epochs[0], epochs[-1]) == (1, done)
    assert len(epochs) < 10
    (run,) = labeled_run.shop.workspace.tracker().client.search_runs(
        [labeled_run.shop.workspace.tracker().experiment("orders")], max_results=2
    )
    history = labeled_run.shop.workspace.tracker().client.get_metric_history(run.info.run_id, "validation_loss")
    assert [metric.step for metric in history] == list(range(1, int(str(done)) + 1))
    assert labeled_run.out.count("registered as version 1") == 1
    assert "egistered model" not in labeled_run.out + labeled_run.err
    assert "Created version" not in labeled_run.out + labeled_run.err


def test_left_out_columns_are_grouped_by_reason() -> None:
    left_out = {"a": "one value alone", "b": "too many categories", "c": "one value alone"}
    assert by_reason(left_out) == {"one value alone": ["a", "c"], "too many categories": ["b"]}


def test_known_anomalies_do_not_use_up_the_alert_budget(labeled_run: LabeledRun) -> None:
    table = pl.read_parquet(DeltaTable(labeled_run.shop.root / "data" / "latents" / "orders").file_uris())
    features = pl.read_parquet(labeled_run.shop.root / "data" / "features" / "orders" / "all.parquet")
    rows = table.join(features.select("row_id", LABEL), on="row_id")
    normal, frauds = rows.filter(~pl.col(LABEL)), rows.filter(LABEL)
    flagged = int(normal["is_anomaly"].sum())
    assert rows["is_anomaly"].sum() > 3 * 0.02 * rows.height  # otherwise the check could not fail
    keys = [dg.AssetCheckKey(dg.AssetKey(["orders", "anomaly_report"]), "alert_budget")]
    (record,) = labeled_run.shop.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys).values()
    assert record.evaluation is not None
    assert record.evaluation.passed
    assert record.evaluation.description == (
        f"{flagged} of 960 rows that are not known anomalies are flagged, {flagged / 960 / 0.02:.1f} times the budget "
        "of 2.00%"
    )
    summary = json.loads((labeled_run.shop.root / "data" / "reports" / "orders" / "summary.json").read_text())
    verdict = summary["verdict"]
    keys = [dg.AssetCheckKey(dg.AssetKey(["orders", "anomaly_report"]), "verdict")]
    (record,) = labeled_run.shop.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys).values()
    assert record.evaluation is not None
    assert record.evaluation.passed == (verdict["state"] == "calm")
    shown = f"all rows: {verdict['state']}: {verdict['words']}"
    assert verdict["since"] == ""  # rows without event time
    assert record.evaluation.description == shown
    client = labeled_run.shop.workspace.tracker().client
    experiment = client.get_experiment_by_name("orders")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["newest verdict"] == shown
    description = run.data.tags["mlflow.note.content"]
    assert description.startswith("**")
    assert "[Open the report](" in description.splitlines()[0]
    assert "model version" in description.partition("<!-- end of the verdict -->")[2]
    assert run.info.run_name == "version 1 (passed), all rows"
    address = "http://127.0.0.1:3001/reports/orders/report.html"
    assert run.data.tags["report"] == address
    first_line = experiment.tags["mlflow.note.content"].splitlines()[0]
    assert first_line.startswith("all rows: ")
    assert first_line.endswith(f"[Open the report]({address}).")
    metadata = labeled_run.shop.metadata("anomaly_report")
    assert metadata["newest_verdict"] == shown
    assert (metadata["known_anomalies"], metadata["known_anomalies_flagged"], metadata["normal_rows_flagged"]) == (
        *(96, frauds["is_anomaly"].sum()),
        flagged,
    )
    auroc = roc_auc_score(rows[LABEL].to_numpy(), rows["score"].to_numpy())
    assert metadata["auroc"] == pytest.approx(auroc, abs=1e-12)
    assert {"average_precision", "auroc_held_out", "average_precision_held_out"} <= metadata.keys()
    assert LABEL not in table.columns
    shop = labeled_run.shop
    text = summarize(shop.workspace.dataset(labeled_run.config), shop.workspace.tracker(), shop.defs, shop.instance)
    assert (
        f"known anomalies  {frauds['is_anomaly'].sum()} of 96 flagged, {flagged} of 960 normal rows; AUROC {auroc:.4f}"
        in text
    )
    assert "checks           all passed" in text


def test_the_command_line_prints_why_a_run_failed(shop: Shop) -> None:
    config = PipelineConfig.model_validate(ATTRIBUTES)
    shop.land(DAYS[0])
    assert shop.run("ingest", DAYS[0]).success
    with pytest.raises(PipelineError, match="orders_publish failed: 'orders' has no champion; materialize autoencoder"):
        project_of(shop).run_job(shop.workspace.dataset(config), "publish", (DAYS[0], DAYS[0]))


def test_the_summary_works_after_a_failed_training(serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TrainingError("the loss is not finite; lower learning_rate")

    monkeypatch.setattr("ae_pipeline.lifecycle.train.fit_bundle", fail)
    config = PipelineConfig.model_validate(ATTRIBUTES)
    with pytest.raises(PipelineError, match="orders_train failed: the loss is not finite; lower learning_rate"):
        project_of(serving_shop).run_job(serving_shop.workspace.dataset(config), "train")
    text = summarize(
        serving_shop.workspace.dataset(config),
        serving_shop.workspace.tracker(),
        serving_shop.defs,
        serving_shop.instance,
    )
    assert "orders version 1" in text
    assert "checks           all passed" in text
