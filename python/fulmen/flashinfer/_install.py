"""`import flashinfer` gives fulmen.flashinfer: the same module objects under both names."""
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys

_OURS = __package__  # "fulmen.flashinfer"


class _Alias(importlib.abc.Loader):
    """Loads flashinfer.x by handing out fulmen.flashinfer.x, with the spec that it was really loaded by."""

    def __init__(self, name):
        self.name = name

    def create_module(self, spec):
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self.spec


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "flashinfer" and not name.startswith("flashinfer."):
            return None
        ours = _OURS + name[len("flashinfer"):]
        module = sys.modules.get(ours)
        found = module.__spec__ if module is not None else importlib.util.find_spec(ours)
        if found is None and module is None:
            raise ModuleNotFoundError(f"No module named {name!r} (fulmen.flashinfer has none of this name)", name=name)
        spec = importlib.machinery.ModuleSpec(name, _Alias(ours), origin=found.origin if found else "fulmen")
        places = found.submodule_search_locations if found else []
        spec.submodule_search_locations = None if places is None else list(places)
        return spec


def install():
    """Makes `import flashinfer` and all its submodules this package, in this process.

    Raises RuntimeError if another flashinfer is loaded already. Calling it again changes nothing."""
    ours = sys.modules[_OURS]
    loaded = sys.modules.get("flashinfer")
    if loaded is not None and loaded is not ours:
        raise RuntimeError(f"flashinfer: expected not to be imported before fulmen.flashinfer.install(), found "
                           f"{getattr(loaded, '__file__', loaded)}")
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    sys.modules["flashinfer"] = ours
