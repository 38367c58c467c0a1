"""Compiles the HLSL that naga makes of every shader with Slang's compiler, which parses HLSL on any system.

    PULID_TRANSLATIONS=/tmp/shaders cargo test --package pulid-ops --test translations
    pip install slangpy==0.43.1      # carries the compiler
    python tools/shaders/check_hlsl.py /tmp/shaders

Microsoft's own compiler is in no package registry; Slang is another front end of the same language. Nothing runs here: each
text is compiled to SPIR-V under shader model 6.2 and thrown away. Exit code 1 where one does not compile.
"""

import argparse
import ctypes
import importlib.util
import re
from pathlib import Path

HLSL, SPIRV, COMPUTE = 2, 6, 6  # SlangSourceLanguage, SlangCompileTarget, SlangStage

ENTRY = re.compile(r"(\[numthreads\([^]]*\]\s*void )\w+\(")


def compiler() -> ctypes.CDLL:
    """Slang's C interface, from the installed package."""
    package = importlib.util.find_spec("slangpy")
    if package is None or package.origin is None:
        raise SystemExit("slangpy is not installed; see above")
    found = sorted(Path(package.origin).parent.glob("libslang-compiler.so*"))
    if not found:
        raise SystemExit(f"{package.origin} comes without libslang-compiler.so; this needs its Linux wheel")
    return ctypes.CDLL(str(found[0]))


class Slang:
    """One session of the compiler."""

    def __init__(self) -> None:
        library = compiler()
        pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int

        def function(name: str, result, *arguments):
            f = getattr(library, name)
            f.restype, f.argtypes = result, list(arguments)
            return f

        self.request = function("spCreateCompileRequest", pointer, pointer)
        self.destroy = function("spDestroyCompileRequest", None, pointer)
        self.target = function("spAddCodeGenTarget", number, pointer, number)
        self.profile = function("spSetTargetProfile", None, pointer, number, number)
        self.unit = function("spAddTranslationUnit", number, pointer, number, text)
        self.source = function("spAddTranslationUnitSourceString", None, pointer, number, text, text)
        self.entry = function("spAddEntryPoint", number, pointer, number, text, number)
        self.compile = function("spCompile", number, pointer)
        self.said = function("spGetDiagnosticOutput", text, pointer)
        self.session = function("spCreateSession", pointer, text)(None)
        self.model = function("spFindProfile", number, pointer, text)(self.session, b"sm_6_2")

    def check(self, path: Path) -> str | None:
        """What is wrong with a text, or nothing."""
        # `expand` and `concat` are words of Slang's own, though not of HLSL's; naga changes other names.
        text, found = ENTRY.subn(r"\1kernel_main(", path.read_text())
        if found != 1:
            return f"has {found} entry points"
        request = self.request(self.session)
        target = self.target(request, SPIRV)
        self.profile(request, target, self.model)
        unit = self.unit(request, HLSL, b"shader")
        self.source(request, unit, str(path).encode(), text.encode())
        self.entry(request, unit, b"kernel_main", COMPUTE)
        failed = self.compile(request) != 0
        said = self.said(request).decode() if failed else None
        self.destroy(request)
        return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the translations lie")
    paths = sorted(parser.parse_args().folder.glob("*.hlsl"))
    if not paths:
        raise SystemExit("the folder holds no .hlsl files")
    slang, failed = Slang(), 0
    for path in paths:
        said = slang.check(path)
        if said is not None:
            failed += 1
            print(f"{path.name}: {said.strip()}")
    print(f"{len(paths) - failed} of {len(paths)} compile")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
