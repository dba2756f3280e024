"""Fingerprints of everything that the rows of landed files are validated with."""

import datetime as dt
from dataclasses import dataclass, field

from ae_pipeline.config.days import last_day
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.landing_folder import landing_folder
from ae_pipeline.ingestion.readers.image_metadata import ImageMetadata, load_image_metadata
from ae_pipeline.ingestion.readers.pictures import is_image
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json

RAW_VERSION = "2"
"""Version of the ingestion code. Increase it when the same files would give other raw rows."""


@dataclass(frozen=True)
class RuleFingerprints:
    """Fingerprints of everything that rows are validated with.

    Attributes:
        lasting: Fingerprint of the schema contract and the settings.
        until_last_day: Fingerprint of the same and the last valid day. Files with rows after that day get this one, so
            that they are read again on the next day.
        metadata: Metadata of images, which count for the image that they describe.
    """

    lasting: str
    until_last_day: str
    metadata: ImageMetadata = field(default_factory=ImageMetadata)

    def of(self, name: str) -> "RuleFingerprints":
        """Return the fingerprints of everything that the rows of one file are validated with.

        Args:
            name: Path of the file below the landing folder.
        """
        metadata = self.metadata.fingerprint(name) if is_image(name) else None
        if metadata is None:
            return self
        return RuleFingerprints(hash_json([self.lasting, metadata]), hash_json([self.until_last_day, metadata]))


def rule_fingerprints(contract: SchemaContract, dataset: Dataset, today: dt.date) -> RuleFingerprints:
    """Return the fingerprints of a schema contract, the settings and the metadata of images.

    Args:
        contract: Current schema contract.
        dataset: Configuration and paths of the dataset.
        today: Current day in the time zone of the dataset.
    """
    config = dataset.config
    settings: list[object] = [config.identity, config.event_time, config.start, config.end, *config.timezone_setting()]
    if config.images:  # conditional, so that datasets without images keep their fingerprint
        settings.append(config.images.model_dump(mode="json", exclude={"masks", "metadata"}))
    if config.source.reading:
        settings.append(config.source.reading)
    lasting = hash_json([RAW_VERSION, contract.fingerprint, settings])
    metadata = load_image_metadata(landing_folder(dataset), config)
    return RuleFingerprints(lasting, hash_json([lasting, last_day(config, today)]), metadata)
