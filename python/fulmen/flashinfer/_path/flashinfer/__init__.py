"""Stands first on PYTHONPATH under `python -m fulmen.flashinfer run`: hands over to fulmen.flashinfer."""
import sys

import fulmen.flashinfer

del sys.modules["flashinfer"]
fulmen.flashinfer.install()
