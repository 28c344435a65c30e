"""Compiles the CPU kernel of the operator if there is a C compiler; everything else is in pyproject.toml.

The library is loaded at run time and links to neither Python nor PyTorch. So it is no extension module: a wheel with
it is for a platform, and for every Python and PyTorch; a wheel without it is for every platform.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError

OPS = Path("src/deformable_detr/ops")
BUILD = runpy.run_path(str(OPS / "compile_flags.py"))
COMMON = ["-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-g0"]


class build_kernel(build_ext):
    """One shared library of one plain-C source, compiled once per instruction set and number type."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the tag of a Python version, because it serves all."""
        return str(Path(*fullname.split(".")[:-1]) / BUILD["LIBRARY"])

    def build_extension(self, ext: Extension) -> None:
        """A missing or failing compiler costs speed, not the installation."""
        try:
            self._compile()
        except (CCompilerError, CompileError, ExecError, LinkError, PlatformError, OSError) as error:
            self.warn(
                f"the CPU kernel was not compiled ({error}); deformable attention will run on grid_sample, some 30 "
                "times slower on the CPU. Where gcc or clang can be had, install one and install again"
            )

    def _compile(self) -> None:
        if self.compiler.compiler_type == "msvc":
            raise PlatformError("Visual C++ has no vector types; the kernel is written in those of gcc and clang")
        target = Path(self.get_ext_fullpath("deformable_detr.ops._msda"))
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = self._objects(str(OPS / "csrc" / "select.c"), [], "select")
        for name, flags in BUILD["copies"]().items():
            for suffix, more in (("", []), ("_double", ["-DMSDA_DOUBLE"])):
                options = [*flags, *more, f"-DMSDA_NAME={name}{suffix}"]
                objects += self._objects(str(OPS / "csrc" / "msda.c"), options, name + suffix)
        self.compiler.link_shared_object(objects, str(target), libraries=["m"])

    def _objects(self, source: str, options: list[str], name: str) -> list[str]:
        return self.compiler.compile(
            [source], output_dir=str(Path(self.build_temp) / name), extra_postargs=[*COMMON, *options]
        )

    def get_outputs(self) -> list[str]:
        """Nothing, if nothing was compiled."""
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        """For an editable installation; there may be nothing to copy."""
        built = Path(self.build_lib) / self.get_ext_filename("deformable_detr.ops._msda")
        if built.exists():
            self.copy_file(str(built), str(OPS / BUILD["LIBRARY"]))


class wheel(bdist_wheel):
    """Tagged by what is inside."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-PLATFORM with a kernel, py3-none-any without."""
        built = list(Path(self.bdist_dir).rglob(BUILD["LIBRARY"])) if self.bdist_dir else []
        return ("py3", "none", super().get_tag()[2] if built else "any")


setup(
    ext_modules=[
        Extension(
            "deformable_detr.ops._msda",
            [str(OPS / "csrc" / "select.c"), str(OPS / "csrc" / "msda.c")],
            depends=[str(OPS / "csrc" / name) for name in ("msda.h", "simd.h", "passes.h")],
            optional=True,
        )
    ],
    cmdclass={"build_ext": build_kernel, "bdist_wheel": wheel},
)
