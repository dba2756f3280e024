"""How pages and messages name the columns of a dataset."""

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.display import ColumnNames, noun_of_rows
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.storage.dataset import Dataset


def column_names(dataset: Dataset) -> ColumnNames:
    """Return the titles and units of the columns, the names of their values, and what rows are called.

    The schema contract knows all columns, so that a title that is the name of another column does not stand alone.

    Args:
        dataset: Configuration and paths of the dataset.
    """
    display, row = dataset.config.display, noun_of_rows(dataset.config)
    if not display:
        return ColumnNames(row=row)
    try:
        columns = frozenset(load_contract(dataset.paths.contract).columns)
    except (OSError, SchemaError):  # the next run infers it, or says what is wrong
        columns = frozenset()
    return ColumnNames(display, columns | frozenset(dataset.config.derive), row)
