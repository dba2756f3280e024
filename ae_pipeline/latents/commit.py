"""Commits of a latent table: its creation, and the only attempt that a publication makes."""

import time
from collections.abc import Mapping, Sequence

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import add_action, latent_schema
from ae_pipeline.latents.retention import retention_properties
from ae_pipeline.storage.dataset import Dataset


class ConflictError(PublicationError):
    """Another publication has changed the table since this one has read it."""

    def __init__(self, files: TableFiles) -> None:
        super().__init__(
            f"another publication changed {files.location} at the same time, and this one committed nothing; run it "
            "again"
        )


def create_table(files: TableFiles, dataset: Dataset, bundle: ModelBundle) -> DeltaTable:
    """Create the table of a dataset.

    Raises:
        ConflictError: Another publication has created it at the same time.
    """
    files.prepare()
    try:
        return DeltaTable.create(
            files.delta_location,
            latent_schema(bundle.model.latent_dim),
            name=f"{dataset.paths.dataset}_latents",
            configuration=retention_properties(dataset.config.latents.retention_days),
        )
    except DeltaError as error:
        if files.open() is not None:
            raise ConflictError(files) from error
        raise


def commit_files(
    table: DeltaTable,
    files: TableFiles,
    bundle: ModelBundle,
    added: Sequence[str],
    removed: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Add and remove files in one commit.

    Args:
        table: Version of the table that the commit is based on.
        files: Files of the table.
        bundle: Model of the added rows.
        added: Paths of the files to add.
        removed: Paths of the files to remove.
        metadata: Metadata of the commit.

    Raises:
        ConflictError: Another publication has committed at the same time.
        PublicationError: A file is gone.
    """
    schema = latent_schema(bundle.model.latent_dim)
    now = int(time.time() * 1000)
    try:
        actions: list[AddAction | RemoveAction] = [add_action(path, files, now) for path in added]
    except FileNotFoundError as error:
        raise PublicationError(
            f"a file of {files.location} was deleted before the commit, and the table is unchanged; run it again"
        ) from error
    actions += [RemoveAction(path, data_change=True, deletion_timestamp=now) for path in removed]
    # Another latent width is another schema. Only an overwrite can change it, and it removes all files by itself.
    columns: list[str] = [field.name for field in table.schema().fields]
    mode = "append" if columns == list(schema.names) else "overwrite"
    if mode == "overwrite":
        actions = [action for action in actions if isinstance(action, AddAction)]
    # Without retries: a retry would add the files to what a concurrent publication has made of the table.
    properties = CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0)
    try:
        table.create_write_transaction(actions, mode, schema, commit_properties=properties)
    except CommitFailedError as error:
        raise ConflictError(files) from error
    table.update_incremental()
