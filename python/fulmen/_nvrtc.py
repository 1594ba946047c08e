"""Where the extras cu12 and cu13 put NVRTC: libfulmen looks there when it has to compile a kernel."""
import glob
import os
import sys

# Newest first, in each folder of the search path.
_PLACES = ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.1[23]")


def find():
    """The file of an installed NVRTC package, or None. Nothing is imported."""
    for place in _PLACES:
        for folder in sys.path:
            found = sorted(glob.glob(os.path.join(folder or ".", place)))
            if found:
                return os.path.abspath(found[-1])
    return None


def announce():
    """Tells the library, unless the user has."""
    if "FULMEN_NVRTC_PACKAGE" not in os.environ:
        path = find()
        if path is not None:
            os.environ["FULMEN_NVRTC_PACKAGE"] = path
