"""Check that a publication keeps most of the rows of the table."""

from collections.abc import Mapping, Sequence

from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.features.build import features_content
from ae_pipeline.ingestion.removal import Removal
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.read import PublishedDay, read_day
from ae_pipeline.storage.dataset import Dataset


def check_removal(
    dataset: Dataset, files: TableFiles, changed: Sequence[PublishedDay], rows: Mapping[str, int], standing: int
) -> None:
    """Check that most rows stay, before a publication writes anything.

    Args:
        dataset: Dataset of the table.
        files: Files of the table.
        changed: Published days whose rows are replaced or removed.
        rows: Number of rows that replace them, by day.
        standing: Number of rows in the table.

    Raises:
        RemovalError: More than `max_removed_share` of the rows would go.
    """
    config = dataset.config
    published = {each.day: read_day(each, files, ["date"]).num_rows for each in changed}
    lost = {day: count - rows.get(day, 0) for day, count in published.items()}
    # Rows that moved to other days are published with those days.
    in_features = sum(count for _, count in features_content(dataset).values())
    foreign = sum(count for day, count in lost.items() if not config.has_day(day))
    fewer = sorted(day for day, count in lost.items() if count > 0 and config.has_day(day))
    reasons = [f"features have fewer rows of {abbreviate(fewer)} than the table"] if fewer else []
    bounds = f"start={config.start}, end={config.end}, event_time={config.event_time!r}"
    reasons += [f"{pluralize(foreign, 'row')} outside of {bounds}"] if foreign else []
    removal = Removal(
        rows=min(sum(lost.values()), standing - in_features),
        standing=standing,
        where=f"the table {files.location}",
        reasons=tuple(reasons),
    )
    if removal.exceeds(config.max_removed_share):
        raise removal.as_error(dataset)
