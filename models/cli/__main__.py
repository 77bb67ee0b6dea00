"""`python -P -m spatialweave.models.cli COMMAND`, where the console script is not on the path."""

import sys

from . import main

sys.exit(main())
