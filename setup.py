"""The compiled part of `kgdistil.answer`: one source, once for each instruction set; pyproject.toml says all else.

The libraries are loaded with ctypes and use nothing of Python's, so one wheel serves every version. Each is optional:
without a compiler the package is built all the same, and numpy answers.
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-std=c++17", "-fPIC", "-pthread", "-g0", "-w", "-Wno-psabi"]
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=undefined"]
LEVELS = {"plain": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    LEVELS["avx512"] = [
        *LEVELS["avx2"],
        *(f"-mavx512{x}" for x in ("f", "bw", "vl", "dq", "vbmi", "vnni")),
        "-mprefer-vector-width=512",
    ]


class Libraries(build_ext):
    """Names them as they are: they are no modules of one Python."""

    def get_ext_filename(self, name: str) -> str:
        return str(Path(*name.split("."))) + ".so"


class Wheel(bdist_wheel):
    """For any Python 3 on this platform; on any platform where nothing was compiled."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.bdist_dir).rglob("_scan_*.so"))
        return "py3", "none", super().get_tag()[2] if built else "any"


checks = SANITIZE if os.environ.get("KGDISTIL_SANITIZE") == "1" else []  # `make sanitize`
setup(
    ext_modules=[
        Extension(
            f"kgdistil.answer._scan_{name}",
            ["kgdistil/answer/scan.cpp"],
            depends=["setup.py"],
            extra_compile_args=[*FLAGS, *flags, *checks],
            extra_link_args=["-pthread", *checks],
            optional=True,
        )
        for name, flags in LEVELS.items()
    ],
    cmdclass={"build_ext": Libraries, "bdist_wheel": Wheel},
    options={
        # by a path: a folder called kgdistil beside a script, such as a clone, would hide the package else
        "editable_wheel": {"mode": "compat"},
        "build_ext": {"parallel": True},  # a compiler on each core
    },
)
