"""AutoencoderPipeline: the component that turns a `defs.yaml` into the Dagster definitions of a dataset."""

import warnings
from typing import Any, Self

import dagster as dg
from pydantic import BaseModel

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.models.factory import check_architecture
from ae_pipeline.orchestration.assets.anomaly_report import build_anomaly_report
from ae_pipeline.orchestration.assets.autoencoder import build_autoencoder
from ae_pipeline.orchestration.assets.champion import build_champion
from ae_pipeline.orchestration.assets.features import build_features
from ae_pipeline.orchestration.assets.latent_features import build_latent_features
from ae_pipeline.orchestration.assets.raw_data import build_raw_data
from ae_pipeline.orchestration.jobs import build_jobs
from ae_pipeline.orchestration.schedules import build_retraining_schedule
from ae_pipeline.orchestration.sensors import build_sensors
from ae_pipeline.orchestration.side_by_side import require_whole_runs

ASSETS = (
    build_raw_data,
    build_features,
    build_autoencoder,
    build_champion,
    build_latent_features,
    build_anomaly_report,
)
"""Builders of the assets of a dataset, in the order of the data."""

# Dagster copies a failure sensor with a parameter that it calls beta.
warnings.filterwarnings("ignore", message="Parameter `owners` of initializer `SensorDefinition.__init__` is currently")

_TEMPLATE = """\
type: ae_pipeline.orchestration.component.AutoencoderPipeline

attributes:
  dataset: {name} # name of the assets, folders and registered model
  description: What a row is, and where it comes from.
  owners: ["team:your-team"]

  # Put CSV, Parquet or image files into data/landing/{name}, or set where they land:
  # source: {{path: /where/files/land, pattern: "**/*.csv"}} # a relative path is below the project's folder
  # Or fetch rows: a SQL query over the database whose URL an environment variable holds, or a Python function:
  # source: {{query: "SELECT * FROM {name} WHERE created_at >= :day_start AND created_at < :day_end", connection: DB}}
  # source: {{callable: "my_package.module:fetch_day"}}

  identity: [id] # columns that together identify a row; a newer row with the same identity replaces it; or none: []
  event_time: created_at # defines the daily partitions; leave it and start out if rows have no time
  # timezone: Europe/Berlin # where days start and end, and the zone of times without one; UTC by default
  start: 2025-01-01 # first day
  # end: 2025-12-31 # last day; leave it out while new data arrives

  # Types are inferred once, into data/contracts/{name}.yaml. Set only what the values cannot show:
  # columns: {{departure: clock_hhmm, shop_number: category}}
  # exclude: [a_column_the_model_must_not_see]
  # derive: {{price_per_item: "price / items"}}
  # label: "status = 'fraud'" # true for known anomalies: the report evaluates the scores with it, no model sees it

  # Rows are image files, or patches of them, with identity: [file, top, left]:
  # images: {{path: "(?P<taken_at>[0-9-]{{10}})_", patch: 32, stride: 16}} # named groups of the path become columns

  model:
    architecture: dense # or conv, for images
    # variational: true # encode to a distribution
    # loss: {{mse: 0.8, ssim: 0.2}} # default: likelihood for tables, mse for images
    # latent_dim: 8 # columns z_000 … z_007 of the latent table
    # hidden: [128] # widths of the encoder's hidden layers; the decoder mirrors them
    # event_time: context # or target, to reconstruct it too, or ignore

  training:
    window_days: 365 # newest days that a training uses, split by time
    # Sizes that you leave out are chosen from the data: fewer days get shorter parts.
    # validation_days: 21 # after the training days, for early stopping
    # calibration_days: 42 # after these, for the p-values of the scores
    # only_normal: true # leave known anomalies out of the training
    # corruption: gaussian # train to remove noise (also masking; salt_and_pepper for images)

  alerts:
    report_rows: 200 # rows in the ranking of the report, the highest score first
    # budget: 0.001 # one alert in a thousand normal rows, if there are 999 calibration rows
    # webhook: ORDERS_WEBHOOK # environment variable with the address that receives alerts

  retrain:
    cron: "0 3 * * 1" # in the time zone above; the schedule is stopped until you start it
    min_new_rows: 1000 # a tick with fewer new rows skips the training
    # drifting_days: 3 # train before the next tick after this many drifted days

  gate:
    max_error_increase: 0.1 # the reconstruction error of a new model may be 10 % greater
    # days: 7 # newest days, on which a new model is compared with the one that serves
"""


class _Scaffolder(dg.Scaffolder[Any]):
    """Writes a `defs.yaml` with comments and defaults to fill in."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write the file for `dg scaffold defs ae_pipeline.orchestration.component.AutoencoderPipeline <name>`."""
        target = request.target_path / "defs.yaml"
        name = request.target_path.name.lower().replace("-", "_")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_TEMPLATE.format(name=name), encoding="utf-8")


@dg.scaffold_with(_Scaffolder)
class AutoencoderPipeline(dg.Component):
    """A pipeline from landed files to a published latent table and an anomaly report.

    raw_data → features → autoencoder → champion → latent_features → anomaly_report, in the group of the dataset, with
    checks, jobs, a schedule that retrains, and sensors that keep the tables up to date.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the schema of the attributes in the YAML."""
        return PipelineConfig

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:  # noqa: ARG003
        """Build the component from the validated attributes."""
        config = PipelineConfig.model_validate(attributes)
        check_architecture(config)
        return cls(config)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002
        """Build the definitions of the dataset."""
        require_whole_runs(self.config)
        jobs = build_jobs(self.config)
        return dg.Definitions(
            assets=[build(self.config) for build in ASSETS],
            jobs=list(jobs.values()),
            schedules=[build_retraining_schedule(self.config)],
            sensors=build_sensors(self.config, jobs),
        )
