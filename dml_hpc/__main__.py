"""``python -m dml_hpc`` is ``dml-hpc``."""

import sys

from dml_hpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
