"""A dataset: its configuration and the paths of its files."""

from dataclasses import dataclass

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.storage.paths import DatasetPaths


@dataclass(frozen=True)
class Dataset:
    """A dataset: what it is configured to be, and where its files are.

    Attributes:
        config: Current configuration, as in its `defs.yaml`.
        paths: Paths of its files.
    """

    config: PipelineConfig
    paths: DatasetPaths

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.config.dataset
