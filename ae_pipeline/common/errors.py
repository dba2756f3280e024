"""The one root of every error that this package raises on purpose."""


class PipelineError(Exception):
    """Something a person can put right: the message gives the rule, the value and the remedy.

    Repeating the work without a change would fail again, so orchestration does not retry it.
    """


class ConfigError(PipelineError):
    """The pipeline's YAML and the data or the machine do not fit together."""


class SchemaError(PipelineError):
    """Landed data does not fit the dataset's schema contract as a whole."""


class StorageError(PipelineError):
    """A folder or file is not where it must be, or cannot be written."""


class TrainingError(PipelineError):
    """A training cannot start from this data or has not given a usable model."""


class BundleError(PipelineError):
    """A model bundle cannot be read, or does not fit the rows it is asked to score."""


class PublicationError(PipelineError):
    """The latent table cannot be moved to the state asked for."""


class PromotionError(PipelineError):
    """A version of a model may not serve."""
