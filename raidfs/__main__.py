"""``python -m raidfs`` is the command ``raidfs``."""

import sys

from raidfs.cli.main import main

sys.exit(main())
