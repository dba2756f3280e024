"""What each stage is, for somebody who meets it in the web UI."""

DESCRIPTIONS = {
    "raw_data": (
        "**Rows as they landed, made safe.** Files are read against the dataset's schema contract: typed, deduplicated by "
        "identity (the newest file wins), and rows that break a rule go to quarantine with a reason. One Parquet file a day."
    ),
    "features": (
        "**Cleaned and derived columns that depend on no model.** Clocks in minutes, tidy text, derived columns; row for row "
        "what raw_data has. One Parquet file a day."
    ),
    "autoencoder": (
        "**A trained model, the challenger.** Fitted on a window of features that is cut by time into training, validation and "
        "calibration days; recorded as one MLflow run and one registered version. Days do not make it stale: a schedule or a "
        "person trains anew."
    ),
    "champion": (
        "**The model version that serves.** Takes over the challenger when it keeps every rule of the gate. Its data version is "
        "the model version, so a rejected challenger makes nothing stale."
    ),
    "latent_features": (
        "**The published table.** Latent columns z_000 …, score, p-value and flag of every row under the champion: a Delta Lake "
        "table of plain Parquet files that changes in one commit."
    ),
    "anomaly_report": (
        "**The strangest rows and why.** Ranked rows with the columns that made them strange, as Parquet and JSON, and one page "
        "to read."
    ),
}
