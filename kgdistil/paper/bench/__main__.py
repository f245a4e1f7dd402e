"""`python -m kgdistil.paper.bench`."""

from __future__ import annotations

import sys

from kgdistil.paper.bench.compare import main

sys.exit(main())
