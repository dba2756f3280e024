"""A small latent table for examples and for trying out readers."""

import datetime as dt
import os
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, write_deltalake

from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import latent_schema
from ae_pipeline.storage.paths import DatasetPaths


def write_example_table(data: str | os.PathLike[str]) -> None:
    """Write the latent table of a dataset `example`: three rows with two latents, computed by version 1 of a model.

    Args:
        data: Data folder. The table is `latents/example` in it.
    """
    times = [dt.datetime(2024, 1, day, 12, tzinfo=dt.UTC) for day in (1, 2, 3)]
    rows = pa.table(
        {
            "row_id": ["a", "b", "c"],
            "event_time": times,
            "date": [time.date() for time in times],
            "z_000": [0.5, -1.0, 2.0],
            "z_001": [0.0, 0.25, 4.0],
            "score": [0.25, 1.5, 9.0],
            "p_value": [0.75, 0.25, 0.0005],
            "is_anomaly": [False, False, True],
            "model_version": [1] * 3,
            "latent_space": ["v1_04f3a1b0"] * 3,
        },
        schema=latent_schema(2),
    )
    files = TableFiles(DatasetPaths(Path(data), "example").latents)
    files.prepare()
    write_deltalake(
        files.delta_location,
        rows,
        commit_properties=CommitProperties(custom_metadata={"latent_space": "v1_04f3a1b0", "model_version": "1"}),
    )
