"""Keys of the YAML that have no effect on a row of the latent table, if features and weights are given."""

from ae_pipeline.config.service import GateConfig

_WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "description": (),
    "owners": (),
    "display": (),
    "max_quarantine_share": (),
    "max_removed_share": (),
    "drift": (),
    "retrain": (),
    "scale": (),
    "fresh_hours": (),
    # What a source gives shows in the content of the features, and in that of the training window.
    "source": (),
    "images": ("masks",),
    # They give the same network, up to rounding. If rows are sampled for a lack of memory, the weights differ.
    "training": ("device", "memory_budget", "threads", "workers"),
    "alerts": ("false_discovery_rate", "min_precision", "min_recall", "report_rows", "webhook", "webhook_secret"),
    "gate": tuple(key for key in GateConfig.model_fields if key != "days"),  # `days` bounds the training window
    "latents": ("retention_days",),
}
"""Sections, each with its keys that have no effect on a row; an empty tuple stands for the whole section."""


def keys_without_effect_on_rows() -> list[str]:
    """Return the dotted keys of a configuration that cannot change a row, given the features and the weights.

    Examples:
        >>> {"scale", "alerts.webhook", "training.workers"} < set(keys_without_effect_on_rows())
        True
    """
    return sorted(
        ".".join((section, key)) if key else section
        for section, keys in _WITHOUT_EFFECT.items()
        for key in (keys or ("",))
    )
