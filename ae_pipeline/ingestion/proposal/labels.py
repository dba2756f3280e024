"""Propose the label of known anomalies."""

import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.proposal.columns import Choice, LandedColumns
from ae_pipeline.ingestion.proposal.names import label_strength, names_anomaly

_ANOMALY_SHARE = 0.35
"""Largest share of the rarer value of a label."""

_TRUE_WORDS = {"1", "1.0", "true", "t", "yes", "y"}
_NORMAL_WORDS = ("normal", "benign", "ok", "none", "good", "regular", "legit", "legitimate", "healthy", "valid")


def propose_label(columns: LandedColumns) -> Choice | None:
    """Return an expression that is true for known anomalies, or None without a column that looks like a label."""
    for strength in (2, 1):
        for name in columns.names:
            values = columns.present(name)
            if label_strength(name) != strength or values.is_empty() or values.dtype.is_nested():
                continue
            counts = values.alias("value").value_counts(sort=True)
            distinct = counts["value"].to_list()
            if len(distinct) > 20 or len(distinct) < 2:
                continue
            column = _quote(name)
            if normal := next((each for each in distinct if str(each).lower().strip(".") in _NORMAL_WORDS), None):
                return Choice(
                    f"{column} <> '{normal}'", f"every value but {normal!r} looks like an anomaly", strength == 2
                )
            # is_fraud = 1 is a fraud, however frequent; of a column called label, the rarer value is the anomaly.
            is_named = names_anomaly(name) and len(distinct) == 2
            index = next((i for i, each in enumerate(distinct) if str(each).lower() in _TRUE_WORDS and is_named), -1)
            share = counts["count"][index] / values.len()
            value = _literal(distinct[index], columns.kind(name))
            reason = f"{'true by its name' if index >= 0 else 'the rarer value'}, {share:.1%} of the rows"
            is_live = strength == 2 and len(distinct) == 2 and (index >= 0 or share <= _ANOMALY_SHARE)
            return Choice(f"{column} = {value}", reason if is_live else f"true for known anomalies; {reason}", is_live)
    return None


def _quote(name: str) -> str:
    try:
        if pl.sql_expr(name).meta.root_names() == [name]:
            return name
    except pl.exceptions.PolarsError:
        pass
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _literal(value: object, kind: ColumnType) -> str:
    if kind == ColumnType.BOOLEAN:
        return str(str(value).lower() in {"true", "t", "yes", "y", "on"}).upper()
    if kind in {ColumnType.INTEGER, ColumnType.NUMBER}:
        return str(value)
    escaped = str(value).replace("'", "''")
    return f"'{escaped}'"
