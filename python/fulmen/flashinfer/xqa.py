"""XQA's decode entry by page tables."""
import sys
import types

from . import _absent
from ._plain import xqa

__all__ = ["xqa"]
__getattr__ = _absent.lookup("xqa")


class _Callable(types.ModuleType):
    """`flashinfer.xqa` names the function at top level, and this module once it is imported: both can be called."""

    def __call__(self, *args, **kwargs):
        return self.xqa(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
