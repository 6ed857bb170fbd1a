"""What gets installed: the wheel's contents, the list of packages, and what an import costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from wsi2ihc.models.registry import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = ("wsi2ihc", "training", "cli", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel built from a copy of the tree, without a network."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    assert wheel.name == f"wsi2ihc-{version('wsi2ihc')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_everything_lands_under_one_import_name(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wsi2ihc"}


@pytest.mark.parametrize(
    "name",
    [
        "wsi2ihc/__init__.py",
        "wsi2ihc/py.typed",
        *(f"wsi2ihc/templates/{name}" for name in ("base.html", "batch.html", "report.html", "style.css")),
        "wsi2ihc/training/__init__.py",
        "wsi2ihc/cli/main.py",
        f"wsi2ihc/models/bundled/{DEFAULT_MODEL}.safetensors",
    ],
)
def test_the_wheel_holds(wheel_names: list[str], name: str) -> None:
    assert name in wheel_names


def test_the_wheel_holds_every_module_once_and_the_licenses(wheel_names: list[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "wsi2ihc").rglob("*.py")}
    for linked in ("training", "cli"):  # rglob does not follow the links
        modules |= {f"wsi2ihc/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / linked).rglob("*.py")}
    packed = [name for name in wheel_names if name.endswith(".py")]
    assert sorted(packed) == sorted(modules)
    for file in PROJECT["project"]["license-files"]:
        assert any(name.endswith(f".dist-info/licenses/{file}") for name in wheel_names), file


@pytest.mark.parametrize("recipe", ["Dockerfile", "wsi2ihc.def"])
def test_images_get_the_licenses_too(recipe: str) -> None:
    text = (ROOT / "examples" / recipe).read_text(encoding="utf-8")
    for file in PROJECT["project"]["license-files"]:
        assert re.search(rf"^(COPY|   ) .*\b{file}\b", text, re.MULTILINE), file


def test_the_list_of_packages_is_complete() -> None:
    found = {path.parent.relative_to(ROOT) for path in (ROOT / "wsi2ihc").rglob("__init__.py")}
    for linked in ("training", "cli"):
        found |= {Path("wsi2ihc") / path.parent.relative_to(ROOT) for path in (ROOT / linked).rglob("__init__.py")}
    setuptools = PROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(".".join(path.parts) for path in found)
    for name, folder in setuptools["package-dir"].items():
        assert (ROOT / folder / "__init__.py").samefile(ROOT / Path(*name.split(".")) / "__init__.py")


def test_every_folder_with_modules_is_a_package() -> None:
    for top in ("wsi2ihc", "training", "cli"):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


def test_the_links_are_relative() -> None:
    for name in ("training", "cli"):
        link = ROOT / "wsi2ihc" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_constraints_pin_all_that_the_project_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    pinned = {canonical(pin.split("==")[0]) for pin in pins}
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    named = {canonical(re.split(r"[\[<>=!~ ;]", name)[0]) for name in wanted}
    assert named - {PROJECT["project"]["name"]} <= pinned  # an extra may name another one of its own project


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("statement", ["import wsi2ihc", "import wsi2ihc.cli.main", "import wsi2ihc.demo"])
def test_torch_is_not_imported_by(statement: str) -> None:
    script = f"import sys; {statement}; assert 'wsi2ihc' in sys.modules; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == "False"


def test_help_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "from wsi2ihc.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as left:\n    assert not left.code\n"
        "print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.splitlines()[-1] == "False"
    assert "not for diagnosis" in told.stdout


def test_the_readme_marks_one_command_each() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in {"demo": "make demo", "test": "make test"}.items():
        blocks = re.findall(rf"<!-- newcomer: {name} -->\n```[a-z]*\n(.*?)```", text, re.DOTALL)
        assert [block.strip() for block in blocks] == [command]


def test_the_version_is_the_same_everywhere() -> None:
    number = PROJECT["project"]["version"]
    assert f"version: {number}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(
        rf"^## \[?{re.escape(number)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
