"""``python -m pixfit`` is ``pixfit``."""

from pixfit.cli import main

main()
