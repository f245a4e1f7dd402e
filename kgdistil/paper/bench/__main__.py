"""`python -m kgdistil.paper.bench`."""

from __future__ import annotations

from kgdistil.errors import run_command
from kgdistil.paper.bench.compare import main

run_command(main)
