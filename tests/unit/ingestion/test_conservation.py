"""No landed row is lost, merged or invented, whatever lands."""

import os
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.landed_files import LandedTable
from tests.support.tables import FATES, check_conservation, landed_tables

EXAMPLES = int(os.environ.get("AE_PIPELINE_FUZZ_EXAMPLES", "30"))
"""Number of random tables. `benchmarks.conservation` runs many more."""


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="AE_PIPELINE_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(tables=landed_tables(), has_identity=st.booleans())
def test_every_row_is_kept_replaced_quarantined_or_refused(tables: list[LandedTable], has_identity: bool) -> None:
    fates = check_conservation(tables, has_identity=has_identity)
    assert sum(fates[each] for each in FATES) == sum(table.rows for table in tables)


def test_the_check_counts_all_fates() -> None:
    good = b"id,time,x,n\n007,2024-03-01T10:00:00,1,0\n7,2024-03-01T10:00:00,2,1\n7,2024-03-01T10:00:00,3,2\n"
    bad = b"id,time,x,n\n,2024-03-01T10:00:00,1,0\n8,2024-03-01T10:00:00,1,1\n"
    tables = [
        LandedTable("a.csv", good, 3, ("007", "7", "7")),
        LandedTable("b.csv", bad, 2, ("", "8")),
        LandedTable("c.csv", b"id,id\n1,2\n", 1, None),
    ]
    expected = Counter(staged=4, raw=3, replaced=1, quarantined=1, refused=1)
    assert check_conservation(tables, has_identity=True) == expected
