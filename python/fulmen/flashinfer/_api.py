"""Calls served and refused, and the one way in which a feature is refused."""
import functools
from collections import Counter

from .._arrays import compiling
from .._binding import Unsupported

_served, _refused = Counter(), Counter()


def refuse(feature):
    """Raises the error of a feature that is not offered."""
    _refused[feature] += 1
    error = Unsupported("unsupported", f"fulmen.flashinfer does not offer {feature}")
    error.counted = True
    raise error


def api(function):
    """Counts the calls of a public function or method that came to an end."""
    name = f"{function.__module__.rpartition('.flashinfer.')[2]}.{function.__qualname__}"

    @functools.wraps(function)
    def call(*args, **kwargs):
        if compiling():
            return function(*args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except Unsupported as error:
            if not getattr(error, "counted", False):  # the library's own refusal, such as of a head size
                _refused[str(error)] += 1
                error.counted = True
            raise
        _served[name] += 1
        return result

    return call


def status():
    """{"version": the release imitated, "served": {call: times}, "refused": {feature: times}} of this process."""
    from . import __version__
    return {"version": __version__, "served": dict(_served), "refused": dict(_refused)}
