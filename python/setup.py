"""One binding module on the stable ABI, linked to the libfulmen.so that FULMEN_BUILD_DIR holds and carries along."""
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig

from setuptools import Extension, setup
from Cython.Build import cythonize

HERE = pathlib.Path(__file__).resolve().parent
ROOT = pathlib.Path(os.environ.get("FULMEN_SOURCE_DIR", HERE.parent))
BUILD = pathlib.Path(os.environ["FULMEN_BUILD_DIR"])
LIBRARY = HERE / "fulmen" / "libfulmen.so.1"


def carry(source, target):
    """Copies a library into the package under the name that the loader asks for."""
    source = pathlib.Path(source).resolve()
    if source != target:
        target.unlink(missing_ok=True)
        shutil.copy2(source, target)


carry(BUILD / "src/libfulmen.so.1", LIBRARY)
needed = subprocess.run(["ldd", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
for name, path in re.findall(r"(libhwy\.so\.\d+) => (\S+)", needed):
    carry(path, HERE / "fulmen" / name)

# Nothing but what stands here goes into the link: a Python's own flags may name its folders, which would stay in the wheel.
compiler = sysconfig.get_config_var("CC") or "cc"
os.environ.update(LDSHARED=f"{compiler} -shared", LDFLAGS="")

binding = Extension(
    "fulmen._binding", ["fulmen/_binding.pyx"], include_dirs=[str(ROOT / "include"), "fulmen"],
    define_macros=[("Py_LIMITED_API", "0x030A0000"), ("CYTHON_LIMITED_API", "1")], py_limited_api=True,
    extra_link_args=[str(LIBRARY), "-Wl,-rpath,$ORIGIN"], extra_compile_args=["-O2", "-g0"])

setup(ext_modules=cythonize([binding]), options={"bdist_wheel": {"py_limited_api": "cp310"}})
