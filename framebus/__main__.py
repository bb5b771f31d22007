"""``python -m framebus`` is the command ``framebus``."""

from framebus.cli import main

raise SystemExit(main())
