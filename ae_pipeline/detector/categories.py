"""Describe rare combinations of categories in the words of the data."""

from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ae_pipeline.config.display import Category, combination
from ae_pipeline.detector.detector import Detector
from ae_pipeline.encoding.blocks import BlockKind
from ae_pipeline.encoding.table_encoder import MISSING, OTHER, TableEncoder
from ae_pipeline.scoring.cooccurrence import Cooccurrence


class Description(NamedTuple):
    """Why a row is anomalous as a whole.

    Attributes:
        actual: Actual value, as text.
        expected: Expected value, as text.
        categories: Columns and values of a rare combination; empty for other reasons.
    """

    actual: str
    expected: str
    categories: tuple[Category, ...] = ()


def describe_combinations(detector: Detector, matrix: npt.NDArray[np.floating]) -> list[Description]:
    """Return the rarest combination of categories of each row.

    The actual text is, for instance, `carrier 9E × dest HNL: never together in 236,000 counted rows`.

    Args:
        detector: Detector that counts combinations.
        matrix: Encoded rows, (n, width).
    """
    encoder, counts = cast("TableEncoder", detector.encoder), cast("Cooccurrence", detector.cooccurrence)
    names = [block.column for block in encoder.blocks if block.kind == BlockKind.CATEGORICAL]
    vocabularies = {column.name: (*column.vocabulary, OTHER, MISSING) for column in encoder.columns}
    texts = []
    for rarest in counts.rarest(matrix):
        chosen = [names[column] for column in rarest.columns]
        categories = tuple((name, vocabularies[name][code]) for name, code in zip(chosen, rarest.codes, strict=True))
        times = f"together in {rarest.rows:,} of" if rarest.rows else "never together in"
        actual = f"{combination(categories)}: {times} {counts.rows:,} counted rows"
        texts.append(Description(actual, f"about {rarest.expected:,.0f}", categories))
    return texts
