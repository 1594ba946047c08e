"""XQA's decode entry by page tables."""
from . import _absent
from ._plain import xqa

__all__ = ["xqa"]
__getattr__ = _absent.lookup("xqa")
