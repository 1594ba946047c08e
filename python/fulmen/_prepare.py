"""Compiling kernels before they are needed."""
import sys
import time
from typing import Any, Callable, Iterable, Mapping, Optional, Union

from . import _binding

Report = Callable[[int, int, str, float], None]


class _Bar:
    """A line on standard error: redrawn on a terminal, else one line at the end."""

    def __init__(self):
        self.begin, self.live = time.monotonic(), sys.stderr.isatty()

    def __call__(self, done: int, total: int, kernel: str, seconds: float) -> None:
        if self.live:
            full = 24 * done // max(1, total)
            sys.stderr.write(f"\r\033[K[{'#' * full}{'.' * (24 - full)}] {done}/{total} {kernel[:40]}")
            sys.stderr.flush()
        if done == total:
            over = "\r\033[K" if self.live else ""
            sys.stderr.write(f"{over}{total} kernels ready, {time.monotonic() - self.begin:.1f} s\n")


def prepare(target: Union[str, _binding.Context], ops: Optional[Iterable[Mapping[str, Any]]] = None, *,
            progress: Union[bool, Report] = True, cache_dir: Optional[str] = None, nvrtc_path: Optional[str] = None) -> None:
    """Compiles kernels now, in parallel, so that no later call has to.

    target    a fulmen.Context: kernels are loaded as well. Or the name of a GPU class, such as "sm_90a": the cache is
              filled on any machine, without a GPU or a driver, and can be copied to the serving box.
    ops       dicts {"op": "rope", "dtype": "bf16"}; attention has "spec" and "limits" besides, as `fulmen.supports` takes
              them. None or empty: every kernel that Fulmen ships (named targets only).
    progress  a bar on standard error, or a function of (done, total, kernel, seconds), called from any thread
    Raises FulmenError with the compiler's log where a kernel fails, or where there is no compiler.
    """
    report = _Bar() if progress is True else progress or None
    ops = [dict(op) for op in ops or ()]
    if isinstance(target, _binding.Context):
        if cache_dir is not None or nvrtc_path is not None:
            raise _binding.InvalidArgument("invalid_argument", "prepare: cache_dir, nvrtc_path: expected None beside a context, "
                                           "which has its own, found others")
        _binding.prepare(target, ops, report)
    else:
        _binding.prepare_target(target, ops, report, cache_dir, nvrtc_path)
