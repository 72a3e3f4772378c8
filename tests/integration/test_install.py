"""CMake installs the blocks where GNU Radio looks, takes everything away again, and the packages' files agree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jinja2
import pytest
import yaml

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPE = ROOT / "gr-multisc" / "conda" / "recipe"
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="CMake is not installed")


@pytest.fixture(scope="module")
def gnuradio():
    return pytest.importorskip("gnuradio.gr", reason="GNU Radio is not installed")


def cmake(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", *arguments], check=False, capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "CONDA_PREFIX"}, **environment},
    )  # fmt: skip


def configured(folder: Path, **options: str) -> Path:
    given = {"Python3_EXECUTABLE": sys.executable, "TEST_PYTHON": sys.executable, **options}
    done = cmake("-B", str(folder), *(f"-D{name}={value}" for name, value in given.items()))
    assert done.returncode == 0, done.stderr
    assert "lacks packages" not in done.stderr
    return folder


def run_python(program: str, python_path: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120, cwd="/",
        env={**os.environ, "PYTHONPATH": str(python_path), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_cmake
@pytest.mark.gnuradio
def test_install_import_companion_uninstall(gnuradio, tmp_path: Path) -> None:
    prefix = tmp_path / "home of somebody"  # with spaces, as homes may have
    build = configured(tmp_path / "build", CMAKE_INSTALL_PREFIX=str(prefix))
    for step in (("--build", str(build)), ("--install", str(build))):
        done = cmake(*step)
        assert done.returncode == 0, done.stderr
    assert f"export GRC_BLOCKS_PATH={prefix}/share/gnuradio/grc/blocks" in done.stdout

    (site,) = {path.parents[1] for path in prefix.rglob("gnuradio/multisc")}
    program = (
        "import multisc; from gnuradio import multisc as blocks; from gnuradio import gr; "
        "print(multisc.__file__, blocks.__file__, multisc.__version__, sep=chr(10)); blocks.ldpc_encoder('nr:1/2')"
    )
    library, module, version = run_python(program, site).splitlines()[:3]
    assert Path(library).is_relative_to(prefix)
    assert Path(module).is_relative_to(prefix)
    assert version == PROJECT["version"]

    blocks = prefix / "share" / "gnuradio" / "grc" / "blocks"
    program = (
        "from gnuradio import gr; from gnuradio.grc.core.platform import Platform; "
        "p = Platform(name='t', prefs=gr.prefs(), version=gr.version(), version_parts=('3', '10', '0')); "
        "p.build_library(); print(*(b.loaded_from for k, b in p.blocks.items() if 'multisc' in k), sep=chr(10))"
    )
    found = run_python(program, site, GRC_BLOCKS_PATH=str(blocks)).splitlines()
    described = {path.name for path in (ROOT / "gr-multisc" / "grc").glob("*.yml")}
    assert {Path(path).name for path in found if Path(path).is_relative_to(blocks)} == described
    assert (prefix / "share" / "gnuradio" / "examples" / "multisc" / "loopback_headless.grc").is_file()

    done = cmake("--build", str(build), "--target", "uninstall")
    assert done.returncode == 0, done.stderr
    assert list(prefix.rglob("*")) == []
    again = cmake("--build", str(build), "--target", "uninstall")
    assert again.returncode != 0
    assert "nothing was installed from here" in again.stdout + again.stderr


@needs_cmake
@pytest.mark.gnuradio
def test_the_tests_run_against_the_build_tree(gnuradio, tmp_path: Path) -> None:
    build = configured(tmp_path / "build")
    done = subprocess.run(["ctest", "-V", "-R", "^pdu$"], check=False, capture_output=True, text=True, cwd=build)
    assert done.returncode == 0, done.stdout
    assert f"PYTHONPATH={build}/python" in done.stdout
    where = run_python("from gnuradio import multisc; print(multisc.__file__)", build / "python")
    assert Path(where).is_relative_to(build / "python")
    listed = subprocess.run(["ctest", "-N"], check=True, capture_output=True, text=True, cwd=build).stdout
    for name in re.findall(r"Test +#\d+: (\w+)", listed):
        assert (ROOT / "tests" / "gnuradio" / f"test_{name}.py").is_file(), name


@needs_cmake
@pytest.mark.gnuradio
def test_a_conda_environment_is_the_default_prefix(gnuradio, tmp_path: Path) -> None:
    environment = tmp_path / "conda"
    (environment / "bin").mkdir(parents=True)
    wrapper = environment / "bin" / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    done = cmake("-B", str(tmp_path / "build"), CONDA_PREFIX=str(environment))
    assert done.returncode == 0, done.stderr
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    assert f"CMAKE_INSTALL_PREFIX:PATH={environment}\n" in cache
    assert f"Python3_EXECUTABLE:FILEPATH={wrapper}\n" in cache
    assert re.search(r"GR_PYTHON_DIR:STRING=lib/python3\.\d+/site-packages\n", cache)


@needs_cmake
def test_a_python_without_gnu_radio_is_refused_with_the_fix(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    done = cmake("-B", str(tmp_path / "build"), f"-DPython3_EXECUTABLE={bare}")
    assert done.returncode != 0
    assert "cannot import GNU Radio: name a Python that can" in " ".join(done.stderr.split())
    assert "-DPython3_EXECUTABLE=" in done.stderr


# ---- what the packages say of themselves


def test_the_version_stands_in_one_place() -> None:
    import multisc

    assert multisc.__version__ == importlib.metadata.version("gr-multisc") == PROJECT["version"]
    for path in (ROOT / "CMakeLists.txt", ROOT / "python" / "multisc" / "__init__.py", RECIPE / "meta.yaml"):
        assert PROJECT["version"] not in path.read_text(), path
    assert f"## [{PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_manifest_is_one_that_cgran_reads() -> None:
    """The head is YAML with the keys of gr_modtool's template, the rest is the description."""
    head, line, description = (ROOT / "gr-multisc" / "MANIFEST.md").read_text().partition("\n---\n")
    assert line
    assert len(description.split()) > 30
    manifest = yaml.safe_load(head)
    required = {"title", "brief", "tags", "author", "copyright_owner", "license", "gr_supported_version"}
    assert required <= set(manifest) <= required | {"dependencies", "repo", "website", "icon", "stable_release"}
    for key in ("tags", "author", "copyright_owner", "dependencies"):
        assert manifest[key], key
        assert all(isinstance(item, str) for item in manifest[key]), key
    assert manifest["license"] == PROJECT["license"]["text"]
    assert "3.10" in str(manifest["gr_supported_version"]).split(", ")


def recipe() -> dict:
    def load_file_regex(load_file: str, regex_pattern: str, from_recipe_dir: bool):
        assert from_recipe_dir
        return re.search(regex_pattern, (RECIPE / load_file).read_text())

    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string((RECIPE / "meta.yaml").read_text())
    return yaml.safe_load(template.render(load_file_regex=load_file_regex))


def test_the_conda_recipe_renders_with_the_version_and_the_dependencies() -> None:
    made = recipe()
    assert made["package"] == {"name": "gnuradio-multisc", "version": PROJECT["version"]}
    assert (RECIPE / made["source"]["path"]).resolve() == ROOT
    assert (ROOT / made["about"]["license_file"]).is_file()
    other = {"msgpack": "msgpack-python", "matplotlib": "matplotlib-base"}  # names in conda-forge
    ours = [re.match(r"([\w-]+)(.*)", text).groups() for text in PROJECT["dependencies"]]
    wanted = {f"{other.get(name, name)} {bounds}" for name, bounds in ours if name != "pyldpc"}
    assert wanted <= set(made["requirements"]["run"])
    assert f"python {PROJECT['requires-python']}" in made["requirements"]["run"]
    for command in made["test"]["commands"]:
        (name,) = re.findall(r"blocks/(\S+)", command)
        assert (ROOT / "gr-multisc" / "grc" / name).is_file()


def test_the_build_script_of_the_recipe_is_sound() -> None:
    script = RECIPE / "build.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = set(re.findall(r"-D(\w+)=", script.read_text()))
    known = (ROOT / "CMakeLists.txt").read_text()
    assert options
    assert all(option in known for option in options)
