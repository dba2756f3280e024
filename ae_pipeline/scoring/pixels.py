"""Measure heat maps against masks, and find the heat above which a pixel is anomalous, in bounded memory."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MAX_FALSE_POSITIVE_RATE = 0.3
"""False positive rate up to which the area under the PRO curve is measured (Bergmann et al. 2020)."""

_EDGES = np.logspace(-4, 8, 12_001)
"""Edges of the bins of heat. Neighboring edges differ by 0.23 %."""


def _counts(heat: Array) -> Array:
    """Return the number of pixels in each bin; those beyond the ends count in the outer bins."""
    bins = np.clip(np.searchsorted(_EDGES, heat.ravel(), side="right"), 0, len(_EDGES))
    return np.bincount(bins, minlength=len(_EDGES) + 1).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class PixelMeasures:
    """Heat maps measured against masks.

    Attributes:
        images: Number of images.
        defects: Number of connected regions of the masks.
        auroc: Area under the ROC curve over all pixels.
        aupro: Area under the curve of the mean share of each region that is found, up to a false positive rate of 0.3,
            as a share of that rate.
        f1: Highest F1 score over all thresholds.
    """

    images: int
    defects: int
    auroc: float
    aupro: float
    f1: float


@dataclass
class PixelMeter:
    """Collects heat maps and masks. Only counts by heat stay in memory."""

    _normal: Array = field(default_factory=lambda: np.zeros(len(_EDGES) + 1))
    _anomalous: Array = field(default_factory=lambda: np.zeros(len(_EDGES) + 1))
    _regions: Array = field(default_factory=lambda: np.zeros(len(_EDGES) + 1))
    _region_count: int = 0
    _images: int = 0

    def add(self, heat: Array, mask: npt.NDArray[np.bool_]) -> None:
        """Add an image.

        Args:
            heat: Heat map, (height, width).
            mask: Whether each pixel is anomalous, (height, width).
        """
        from scipy.ndimage import label

        self._images += 1
        self._normal += _counts(heat[~mask])
        self._anomalous += _counts(heat[mask])
        regions, count = label(mask, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            counts = _counts(heat[regions == region])
            self._regions += counts / counts.sum()
        self._region_count += count

    def measure(self) -> PixelMeasures | None:
        """Return the measures of all images; None without a normal and an anomalous pixel."""
        from sklearn.metrics import auc

        if not self._normal.any() or not self._anomalous.any():
            return None
        false, true, overlapped = (
            np.concatenate([[0.0], np.cumsum(counts[::-1])])
            for counts in (self._normal, self._anomalous, self._regions)
        )
        rate, recall, overlap = false / false[-1], true / true[-1], overlapped / self._region_count
        limit = MAX_FALSE_POSITIVE_RATE
        below = rate <= limit
        ends = [*rate[below], limit], [*overlap[below], np.interp(limit, rate, overlap)]
        return PixelMeasures(
            images=self._images,
            defects=self._region_count,
            auroc=float(auc(rate, recall)),
            aupro=float(auc(*ends) / limit),
            f1=float((2 * true / np.maximum(true + false + true[-1], 1)).max()),
        )

    def quantile(self, share: float) -> float:
        """Return the heat that this share of the normal pixels does not exceed."""
        below = np.cumsum(self._normal)
        index = int(np.searchsorted(below, share * below[-1]))
        return float(_EDGES[min(index, len(_EDGES) - 1)])
