"""Calls served and refused, and the one way in which a feature is refused."""
import functools
from collections import Counter

from .._arrays import compiling
from .._binding import Unsupported

_served, _refused = Counter(), Counter()


def refuse(feature):
    """Raises the error of a feature that is not offered."""
    _refused[feature] += 1
    raise Unsupported("unsupported", f"fulmen.flashinfer does not offer {feature}")


def api(function):
    """Counts the calls of a public function or method that came to an end."""
    name = f"{function.__module__.rpartition('.flashinfer.')[2]}.{function.__qualname__}"

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        if not compiling():
            _served[name] += 1
        return result

    return call


def status():
    """{"version": the release imitated, "served": {call: times}, "refused": {feature: times}} of this process."""
    from . import __version__
    return {"version": __version__, "served": dict(_served), "refused": dict(_refused)}
