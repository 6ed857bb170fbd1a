"""Numbers out of bounds end in one line, in every numeric option of every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from wsi2ihc.cli.main import COMMANDS, cli, main
from wsi2ihc.cli.options import _Parsed

ABSURD = ("-1", "0", "1e308", str(10**30), "nan", "inf")

LINES = {
    "batch": "{slides} {out} --model identity --device cpu --dry-run",
    "curves": "{run} --out {out}.png",
    "dataset": "{patches}",
    "evaluate": "--reference {real} --virtual {virtual} --out {out} --resamples 100",
    "info": "{he0.tif}",
    "models import": "{net.pth} {out}.safetensors --mpp 1",
    "pairs": "{empty.csv} {out}",
    "register": "{he0.tif} {ihc0.tif} {out}",
    "tissue": "{he0.tif} {out}.png",
    "train": "{patches} --dry-run --ngf 4 --ndf 4 --depth 1 --crop-size 32 --batch-size 2 --device cpu --epochs 1",
    "translate": "{he0.tif} {out}.ome.tiff --model identity --device cpu --dry-run",
    "warp": "{ihc0.tif} {placed} {out}.ome.tiff",
}
"""A quick call of each command that has numeric options."""

SLOW_BUT_GOOD = {("register", "--series"), ("register", "--page"), ("register", "--moving-series"),
                 ("register", "--moving-page"), ("train", "--depth")}  # fmt: skip
"""Options whose 0 has an effect that takes seconds, and is tested elsewhere."""


def commands(group: click.Group = cli, above: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def is_numeric(param: click.Parameter) -> bool:
    if not isinstance(param, click.Option) or param.is_flag or param.count:
        return False
    kinds = (click.types.IntParamType, click.types.FloatParamType, _Parsed)
    return isinstance(param.type, kinds) and param.name != "region"


CASES = [(name, param.opts[0]) for name, command in commands() for param in command.params if is_numeric(param)]


def test_every_command_with_numbers_is_here() -> None:
    assert {name for name, _ in CASES} == set(LINES)
    assert {name.split()[0] for name in LINES} | {"demo", "doctor"} == set(COMMANDS)
    assert len(CASES) > 90


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "option"), CASES, ids=map(" ".join, CASES))
def test_an_absurd_number_is_refused_in_one_line(
    name: str, option: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {path.name: path for path in inputs.iterdir()}
    for number, value in enumerate(ABSURD):
        if value == "0" and (name, option) in SLOW_BUT_GOOD:
            continue
        words = LINES[name]
        for key, path in {**paths, "out": tmp_path / f"out{number}"}.items():
            words = words.replace(f"{{{key}}}", str(path))
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), *words.split(), option, value, "-q"])
        err = capsys.readouterr().err
        if value in ("-1", "0") and ended.value.code == 0:  # a number with a meaning
            continue
        assert ended.value.code in (1, 2), (value, err)
        *usage, last = err.splitlines()
        assert last.startswith("Error: "), err
        assert "unexpected" not in last, value
        assert value in ("-1", "0") or option.replace("--moving-", "--") in last.replace("--moving-", "--")
        assert ended.value.code == 2 or not usage, err
        assert not list(tmp_path.glob(f"*out{number}*")), "nothing is written"


def test_an_absurd_number_of_a_manifest_is_a_problem_of_its_row(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["mpp", "series", "page", "seed", "batch_size", "workers", "max_memory", "overlap", "core_size",
               "tile_size", "quality"]  # fmt: skip
    cells = [(column, value) for column in columns for value in ABSURD[2:]]
    rows = [",".join(value if column == name else "" for name in columns) for column, value in cells]
    manifest = tmp_path / "slides.csv"
    lines = [f"path,{','.join(columns)}", *(f"{inputs / 'he0.tif'},{row}" for row in rows)]
    manifest.write_text("\n".join([*lines, f"{inputs / 'he1.tif'}{',' * len(columns)}\n"]), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["batch", str(manifest), str(tmp_path / "out"), "--model", "identity", "--device", "cpu", "--dry-run"])
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: line ")]
    assert ended.value.code == 1
    assert len(problems) == len(cells) == 44
    for number, (problem, (column, value)) in enumerate(zip(problems, cells, strict=True), start=2):
        assert problem.startswith(f"Error: line {number}, he0.tif: "), (column, value)
        assert "unexpected" not in problem, (column, value)
