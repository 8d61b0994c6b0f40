"""``python -m safespawn``."""

import sys

from .cli import main

sys.exit(main())
