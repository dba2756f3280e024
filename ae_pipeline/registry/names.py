"""Aliases and tags of the model registry."""

CHALLENGER, CHAMPION = "challenger", "champion"
"""Aliases in the registry: the newest trained version, and the version that serves."""

GATE_TAG = "gate"
"""Version tag with the gate's result. A training sets it last, so a version without it was interrupted."""

LAST_DAY_TAG = "window.last_day"
"""Tag of a run, and of a version, with the last day of the training window."""

PUBLISHED_TAG = "published"
"""Tag of a run with flags and drift of the rows that its version scored, as of its last report; JSON."""
