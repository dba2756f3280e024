"""The asset `load_error`: takes the place of a dataset whose `defs.yaml` cannot be loaded."""

import dagster as dg

LOAD_ERROR = "load_error"


def build_load_error(group: str, message: str) -> dg.AssetsDefinition:
    """Build an asset that shows the error, and fails with it when somebody materializes it.

    Args:
        group: Asset group, which is the first part of the key.
        message: Why the file cannot be loaded, in one line.
    """
    description = (
        f"**This dataset is not loaded, because its `defs.yaml` has an error.**\n\n```text\n{message}\n```\n\n"
        "It has no assets, jobs, sensors and schedule until the file is correct and the code location is reloaded. "
        "Its data, models and tables stay as they are. `ae-pipeline list` shows the same message."
    )

    @dg.asset(
        key=dg.AssetKey([group, LOAD_ERROR]),
        group_name=group,
        description=description,
        kinds={"error"},
        metadata={"error": message},
    )
    def load_error() -> None:
        raise dg.Failure(description=message, allow_retries=False)

    return load_error
