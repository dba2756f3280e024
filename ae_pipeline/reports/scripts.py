"""The scripts that draw charts in a page."""

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ae_pipeline.storage.files import write_text

_DIGEST_COMMENT = "\n// sha256 "
"""Last line of the cached script, before its digest."""


@functools.lru_cache(maxsize=1)
def scripts(folder: Path) -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that sets `window.vegaEmbed`.

    Args:
        folder: Folder that caches the script, because bundling takes a second or two.
    """
    cached = folder / f"vega-{version('vl-convert-python')}.js"
    if cached.is_file():
        cached_text, _, digest = cached.read_text(encoding="utf-8", errors="replace").rpartition(_DIGEST_COMMENT)
        if digest.strip() == hashlib.sha256(cached_text.encode()).hexdigest():
            return cached_text
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle
    text = str(bundle())
    write_text(cached, f"{text}{_DIGEST_COMMENT}{hashlib.sha256(text.encode()).hexdigest()}\n")
    return text
