"""Runs the command line: `python -m ae_pipeline.cli`."""

import sys

from ae_pipeline.cli.main import main

sys.exit(main())
