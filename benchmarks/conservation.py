"""Fuzzing of the ingestion: random tables in files of several kinds, some of them damaged.

For each table the benchmark checks that rows in = rows in raw_data + replaced + quarantined + rows of refused files,
and that identities of undamaged files are exactly as they landed. The tests check a few such tables, this benchmark
thousands. It stops at the first table that breaks the rule, and Hypothesis prints the smallest one.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.report import format_table, write_report
from tests.support.landed_files import LandedTable
from tests.support.tables import FATES, check_conservation, landed_tables

_REPORT_EVERY = 250
"""Number of tables after which the figures are written."""


def fuzz(examples: int) -> Counter[str]:
    """Check random tables, and return the number of tables and of rows with each fate.

    Args:
        examples: Number of tables.
    """
    totals: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(tables=landed_tables(), has_identity=st.booleans())
    def check(tables: list[LandedTable], has_identity: bool) -> None:
        fates = check_conservation(tables, has_identity=has_identity)
        rows = sum(table.rows for table in tables)
        if sum(fates[each] for each in FATES) != rows:
            raise AssertionError(f"{rows} rows landed, but {dict(fates)} are accounted for")
        uncertain = fates.pop("uncertain", 0)  # a bound only: a damaged file can have fewer records
        totals.update(fates, tables=1, files=len(tables), rows=rows - uncertain)

    check()
    return totals


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conservation", description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    start = time.monotonic()
    totals: Counter[str] = Counter()
    for done in range(0, arguments.examples, _REPORT_EVERY):  # a long run leaves figures when it is stopped
        totals += fuzz(min(_REPORT_EVERY, arguments.examples - done))
        row = {**dict(sorted(totals.items())), "seconds": round(time.monotonic() - start, 1)}
        write_report(arguments.out, "conservation", [row], ("hypothesis", "polars", "pyarrow"))
    print(format_table(list(row), [[f"{value:,}" for value in row.values()]]))


if __name__ == "__main__":
    main()
