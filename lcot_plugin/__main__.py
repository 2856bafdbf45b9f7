"""`python -m lcot_plugin`: the `lcot` command, also where no console script was installed."""

import sys

from lcot_plugin.activation import install

install()  # outside the guard: a spawned data-loader worker imports this file under another name

if __name__ == "__main__":
    from lcot_plugin.cli import main

    sys.exit(main())
