"""What is wrong with a latent table, and how results are shown, for all benchmarks of hosts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ae_pipeline import read_latents
from ae_pipeline.latents.contract_versions import read_contract
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.read import MANIFEST
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.report import format_table


def look(dataset: str, tables: str, version: int, expected: set[str]) -> Counter[str]:
    """Return what is wrong with a table and with the texts beside it.

    Args:
        dataset: Name of the dataset.
        tables: Where the tables are.
        version: Version of the model whose latents it must have.
        expected: Identities that it must have.
    """
    paths = DatasetPaths(Path(), dataset, tables)
    files = TableFiles(paths.latents)
    table, contract = files.open(), read_contract(files)
    assert table is not None
    latents = read_latents(dataset, tables=tables)
    ids = latents.arrow["row_id"].to_pylist()
    manifest = (files.read_text(MANIFEST) or "").split()
    properties = {entry.property: entry.value for entry in (contract.customProperties if contract else None) or []}
    return Counter(
        {
            "rows lost": len(expected - set(ids)),
            "rows doubled": len(ids) - len(set(ids)),
            "rows that should not be there": len(set(ids) - expected),
            "other model": latents.model_version != version,
            "manifest differs": sorted(manifest) != sorted(files.full_path(path) for path in live_files(table)),
            "contract differs": properties.get("latentSpace") != latents.latent_space
            or properties.get("modelVersion") != version,
        }
    )


def describe(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each figure."""
    lines = [
        [str(row["trial"]), name.replace("_", " "), str(value)]
        for row in results
        for name, value in row.items()
        if name != "trial"
    ]
    return format_table(["trial", "figure", "value"], lines)
