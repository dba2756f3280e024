"""From landed files to typed, deduplicated rows: readers, schema contract, ledger and quarantine."""
