"""``python -m lit_ift`` is ``lit-ift``."""

import sys

from lit_ift.cli import main

sys.exit(main())
