"""The training window in the manifest of a bundle."""

from collections.abc import Mapping
from typing import Any

from ae_pipeline.features.split import GATE, PARTS, Window


def window_facts(window: Window) -> dict[str, Any]:
    """Return a window as the manifest stores it."""
    return {
        **{part: list(getattr(window, part)) for part in (*PARTS, GATE)},
        "fingerprint": window.fingerprint,
        "split_by": list(window.split_by),
        "only_normal": window.only_normal,
        **({"where": True} if window.where else {}),
    }


def read_window(facts: Mapping[str, Any]) -> Window:
    """Return the window that `window_facts` has made facts of.

    Raises:
        KeyError: A fact is missing.
    """
    return Window(
        **{part: tuple(facts[part]) for part in (*PARTS, GATE)},
        fingerprint=facts["fingerprint"],
        split_by=tuple(facts["split_by"]),
        only_normal=facts["only_normal"],
        where=facts.get("where", False),
    )
