"""AutoencoderPipeline: one dataset's defs.yaml to that dataset's Dagster definitions."""

from typing import Any, Self

import dagster as dg
from pydantic import BaseModel

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.models.factory import check_architecture
from ae_pipeline.orchestration.assets import build_assets
from ae_pipeline.orchestration.automation import build_automation
from ae_pipeline.orchestration.resources import dataset_lock

_TEMPLATE = """\
type: ae_pipeline.orchestration.component.AutoencoderPipeline

attributes:
  dataset: {name} # names the assets, the folders and the registered model
  description: What a row is, and where it comes from.
  owners: ["team:your-team"]

  # Put CSV, Parquet or image files into data/landing/{name}, or say where they land:
  # source: {{path: /where/files/land, pattern: "**/*.csv"}}

  identity: [id] # columns that together name a row; a later row of the same identity replaces it
  event_time: created_at # cuts daily partitions; leave it and start out where rows have no time
  start: 2025-01-01 # first day, UTC
  # end: 2025-12-31 # last day; leave out while data keeps coming

  # Types are inferred once, into data/contracts/{name}.yaml. Say only what values cannot show:
  # columns: {{departure: clock_hhmm, shop_number: category}}
  # exclude: [a_column_the_model_must_not_see]
  # derive: {{price_per_item: "price / items"}}
  # label: "status = 'fraud'" # true for known anomalies: the report measures the scores by it, no model sees it

  # Rows are PNG or JPEG files, or patches of them, with identity: [file, top, left]:
  # images: {{path: "(?P<taken_at>[0-9-]{{10}})_", patch: 32, stride: 16}} # named groups of the path become columns

  model:
    architecture: dense # or conv, for images
    # variational: true # encode to a distribution
    # loss: {{mse: 0.8, ssim: 0.2}} # likelihood for tables and mse for images when left out
    latent_dim: 8 # columns z_000 … z_007 of the latent table
    hidden: [128] # widths of the encoder; the decoder mirrors them

  training:
    # At least validation_days + calibration_days + gate.days + 1 days with rows are needed; shorten them for less data.
    window_days: 365 # the newest days that a training looks at, cut by time:
    validation_days: 21 # … then these, for early stopping
    calibration_days: 42 # … and then these, for the p-values of the scores
    # only_normal: true # leave the label's known anomalies out of the training
    # corruption: gaussian # learn to take noise away (also masking; salt_and_pepper for images)

  alerts:
    budget: 0.001 # one alert in a thousand normal rows
    # webhook: ORDERS_WEBHOOK # environment variable with an address that alerts are posted to

  retrain:
    cron: "0 3 * * 1" # UTC; the schedule is stopped until you start it
    min_new_rows: 1000 # a tick with fewer new rows skips
    # drifting_days: 3 # train before the next tick once so many drifted days are there to learn from

  gate:
    days: 7 # the newest days, where a new model must keep up with the one that serves before it takes over
    # max_error_increase: 0.1 # its reconstruction error may be a tenth greater
"""


class _Scaffolder(dg.Scaffolder[Any]):
    """Writes a prefilled and commented defs.yaml."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Writes the file for `dg scaffold defs ae_pipeline.orchestration.component.AutoencoderPipeline <name>`."""
        target = request.target_path / "defs.yaml"
        name = request.target_path.name.lower().replace("-", "_")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_TEMPLATE.format(name=name), encoding="utf-8")


@dg.scaffold_with(_Scaffolder)
class AutoencoderPipeline(dg.Component):
    """A dataset's chain from landed files to a published latent table and a report of its strangest rows.

    raw_data → features → autoencoder → champion → latent_features → anomaly_report, in a group of the dataset's name,
    with checks, jobs, a schedule that retrains, and sensors that bring the tables up to date.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Gives the schema of the YAML's attributes."""
        return PipelineConfig

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:  # noqa: ARG003
        """Takes the validated attributes."""
        config = PipelineConfig.model_validate(attributes)
        check_architecture(config)
        return cls(config)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002
        """Builds the dataset's definitions."""
        return dg.Definitions.merge(
            dg.Definitions(
                assets=build_assets(self.config),
                resources={f"{self.config.dataset}_lock": dataset_lock(self.config.dataset)},
            ),
            build_automation(self.config),
        )
