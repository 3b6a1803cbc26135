"""``dml-hpc``, and ``python -m dml_hpc``."""

import os
import signal
import sys

from dml_hpc.signals import ASKING, hold_signals


def main() -> int:
    """Run the command line and return its exit code.

    To import the verbs may take long on a busy file system. Who asks the job meanwhile to save and to end is heard as
    soon as it is known whether the verb can; Ctrl-C ends it at once, without a traceback.
    """
    hold_signals(ASKING)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from dml_hpc.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
