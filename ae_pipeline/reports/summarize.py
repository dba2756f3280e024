"""Fill `summary.json` from a published table."""

from dataclasses import asdict

from ae_pipeline.monitoring.feedback import marks_of
from ae_pipeline.monitoring.feedback_precision import precision_by_version
from ae_pipeline.monitoring.newest_day import filling_json
from ae_pipeline.reports.context import PageContext
from ae_pipeline.reports.image_report import ImageReport
from ae_pipeline.reports.labels import Labels
from ae_pipeline.reports.summary import Summary, assessment_json, day_count, row_facts
from ae_pipeline.reports.view import Published

_SUMMARY_ROWS = 50
"""Number of rows in summary.json."""


def summarize(
    published: Published, run_id: str, context: PageContext, labels: Labels | None, images: ImageReport | None
) -> Summary:
    """Return the content of `summary.json`.

    Args:
        published: Published table.
        run_id: MLflow run that trained the model.
        context: Content of the page over all days.
        labels: Measures against the label; None without a label.
        images: Verdicts on images; None unless rows are images or patches.
    """
    paths, bundle, config = published.dataset.paths, published.bundle, published.dataset.config
    by_day = list(published.entries.values())
    rows, flagged = sum(day.rows for day in by_day), sum(day.flagged for day in by_day)
    budget, rate = bundle.calibration.budget, config.alerts.false_discovery_rate
    return Summary.model_validate(
        {
            "dataset": paths.dataset,
            "model_version": published.model_version,
            "mlflow_run": run_id,
            "latent_space": next((day.identity.split("/")[0] for day in published.files.values()), None),
            "rows": rows,
            "flagged": flagged,
            "budget": budget,
            "expected_alerts": (rows - (labels.all_rows.anomalies if labels else 0)) * budget,
            "false_discovery_rate": rate,
            "discoveries": sum(day.discovery_count for day in by_day) if rate is not None else None,
            "timezone": config.timezone,
            "verdict": assessment_json(context.assessment) if context.assessment else None,
            "filling": filling_json(published.filling) if published.filling else None,
            "refused": published.ledger.refused_message,
            "groups": [
                {
                    "columns": list(group.columns),
                    "words": group.message,
                    "rows": len(group.rows),
                    "highest_score": group.rows[0].score,
                    "days": list(group.days),
                }
                for group in context.groups
            ],
            # Compared with the version that served at the time of the training.
            "alignment": bundle.facts.alignment.to_json() if bundle.facts.alignment else None,
            "score_threshold": bundle.calibration.threshold,
            "calibration_rows": len(bundle.calibration.scores),
            "rows_by_part": bundle.facts.rows,
            "train_days": [bundle.window.train[0], bundle.window.train[-1]],
            "calibration_days": [bundle.window.calibration[0], bundle.window.calibration[-1]],
            "screening": bundle.facts.screening.message if bundle.facts.screening else None,
            "columns": bundle.columns,
            "columns_left_out": {entry.column: entry.reason for entry in bundle.encoder.left_out},
            "labels": asdict(labels) if labels else None,
            "images": images.for_summary() if images else None,
            "drift": [
                {
                    "day": day.day,
                    "rows": day.rows,
                    "is_after": day.is_after,
                    "is_judged": day.is_judged,
                    "drifted": day.message(),
                }
                for day in published.drift
            ],
            "days": [day_count(day, assessment) for day, assessment in published.assessments.items()],
            "feedback": [
                {**asdict(each), "precision": each.precision} for each in precision_by_version(marks_of(paths))
            ],
            "strangest": [row_facts(row) for row in context.rows[:_SUMMARY_ROWS]],
            "files": {
                "alerts": "alerts.parquet",
                "days": "days/",
                "page": "report.html",
                "schema": "summary.schema.json",
            },
        }
    )
