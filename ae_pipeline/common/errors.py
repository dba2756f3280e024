"""Errors that users can fix. `PipelineError` is the base of all of them."""


class PipelineError(Exception):
    """Base of all errors that users can fix. The message states the rule, the value and the remedy.

    Orchestration does not retry them, because the same inputs would fail again.
    """


class ConfigError(PipelineError):
    """The configuration does not fit the data or the machine."""


class SchemaError(PipelineError):
    """Landed files violate the schema contract of the dataset as a whole, not in single rows."""


class SourceError(PipelineError):
    """A query or a Python function that fetches rows failed. Rows fetched before stay."""


class StorageError(PipelineError):
    """A file or folder is missing, is in the way, or cannot be written."""


class UnavailableError(StorageError):
    """An object store does not answer as it should. The text has durations, so that it differs each time."""


class ConflictError(StorageError):
    """Another host has changed the same file, and only another run, or a person, can merge them."""


class LostFileError(StorageError):
    """An object store has lost or damaged the content of a file that no run builds again."""


class RemovalError(PipelineError):
    """An edit, a deletion or a correction would remove many rows, and nobody has accepted it. Nothing has changed."""


class TrainingError(PipelineError):
    """A training cannot start with these rows, or its result is not usable."""


class EngineError(PipelineError):
    """Workers of the selected engine do not answer, or ended before their work did."""


class DeviceError(PipelineError):
    """A CUDA device failed, or has too little memory."""


class BundleError(PipelineError):
    """A model bundle cannot be read, or does not fit the rows to score."""


class PublicationError(PipelineError):
    """A publication or restore of the latent table failed; the table is unchanged."""


class PromotionError(PipelineError):
    """A model version cannot become the champion."""


class UnknownVersionError(PromotionError):
    """A model has no version with this number."""
