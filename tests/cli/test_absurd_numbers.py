"""Numbers that nobody means, in every numeric option of every command: one line, and soon."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "pairing"))
from make_slide_pairs import row, write_pairs
from tiny_runs import tiny_pairs

from wsi2ihc.cli.main import COMMANDS, cli, main
from wsi2ihc.cli.parameters import REGION, PositiveFloat, _Notation
from wsi2ihc.generator.networks import ResnetGenerator
from wsi2ihc.registration.files import save_transform
from wsi2ihc.registration.transform import Transform, frame_of
from wsi2ihc.slide import open_slide
from wsi2ihc.training.history import RunRecord

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
    kinds = (click.types.IntParamType, click.types.FloatParamType, PositiveFloat, _Notation)
    return isinstance(param.type, kinds) and param.type is not REGION


CASES = [(name, param.opts[0]) for name, command in commands() for param in command.params if is_numeric(param)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pairs(tmp_path_factory.mktemp("inputs"), 2)
    with open_slide(folder / "he0.tif") as he, open_slide(folder / "ihc0.tif") as ihc:
        save_transform(folder / "placed", Transform(np.eye(2, 3), None, frame_of(he.info), frame_of(ihc.info)))
    torch.save(ResnetGenerator(1, 2).state_dict(), folder / "net.pth")
    (folder / "empty.csv").write_text(",".join(row(0)) + "\n")
    tiny_pairs(folder / "patches")
    for name in ("real", "virtual"):
        (folder / name).mkdir()
        pixels = np.random.default_rng(len(name)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "0.png")
    (folder / "slides").mkdir()
    (folder / "slides" / "a.tif").symlink_to(folder / "he0.tif")
    with RunRecord(folder / "run", 0, 0, False, step_names=("generator",), validation_names=("psnr",)) as record:
        record.step(1, 1, {"generator": 1.0})
        record.validation(1, 1, {"psnr": 20.0})
    return folder


def test_every_command_with_numbers_is_here() -> None:
    assert {name for name, _ in CASES} == set(LINES)
    assert {name.split()[0] for name in LINES} | {"demo", "doctor"} == set(COMMANDS)
    assert len(CASES) > 90


@pytest.mark.timeout(60)
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


@pytest.mark.parametrize("value", ABSURD[2:])
@pytest.mark.parametrize("column", ["mpp", "series", "page", "seed", "batch_size", "workers", "max_memory", "overlap",
                                    "core_size", "tile_size", "quality"])  # fmt: skip
def test_an_absurd_number_of_a_manifest_is_a_problem_of_its_row(
    column: str, value: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "slides.csv"
    manifest.write_text(f"path,{column}\n{inputs / 'he0.tif'},{value}\n{inputs / 'he1.tif'},\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["batch", str(manifest), str(tmp_path / "out"), "--model", "identity", "--device", "cpu", "--dry-run"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: line 2, he0.tif: ")]
    assert (ended.value.code, len(lines)) == (1, 1)
    assert "unexpected" not in lines[0]
