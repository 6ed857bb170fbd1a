"""The script that kills commands finds what it is made to find; the commands here are a few lines of Python."""

from __future__ import annotations

import sys
from pathlib import Path

import kill
import pytest
from kill import Scenario, kill_repeatedly

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

_BEGIN = """
import os, pathlib, sys, time
out = pathlib.Path("out")
partial, whole = out / ".a.partial", out / "a.json"
"""

_CAREFUL = """
partial.unlink(missing_ok=True)
partial.touch()
time.sleep(0.3)
partial.write_text('{"pixels": 1, "created": %r}' % time.time())
partial.replace(whole)
"""

_LEAVES_PARTIAL_FILES = """
partial = out / f".{os.getpid()}.partial"
partial.touch()
time.sleep(0.3)
partial.replace(whole)
"""

_REFUSES_AFTER_A_KILL = """
if whole.exists():
    sys.exit("whole is there already")
whole.touch()
time.sleep(0.3)
whole.write_text("{}")
"""

_WRITES_OTHER_PIXELS = """
whole.write_text('{"pixels": %r}' % time.time())
time.sleep(0.3)
"""

_LEAVES_A_PROCESS = """
import subprocess
whole.touch()
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
time.sleep(0.3)
process.kill()
process.wait()
"""


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "ORPHANS_S", 0.5)


def faults_of(program: str, folder: Path, kills: int = 2) -> list[str]:
    scenario = Scenario(
        lambda inputs: (inputs / "input").touch(), lambda _inputs: [], program=(sys.executable, "-c", _BEGIN + program)
    )
    return kill_repeatedly(scenario, folder / "work", kills).faults


def test_a_command_that_publishes_its_output_in_one_piece_passes(tmp_path: Path) -> None:
    assert faults_of(_CAREFUL, tmp_path) == []


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (_LEAVES_PARTIAL_FILES, "left out/."),
        (_REFUSES_AFTER_A_KILL, "exit 1: whole is there already"),
        (_WRITES_OTHER_PIXELS, "different a.json"),
        (_LEAVES_A_PROCESS, "is left"),
    ],
    ids=["partial file", "refusal", "other pixels", "process"],
)
def test_damage_by_a_kill_is_found(program: str, fault: str, tmp_path: Path) -> None:
    assert fault in " ".join(faults_of(program, tmp_path))


def test_inputs_that_a_command_changes_are_found(tmp_path: Path) -> None:
    scenario = Scenario(
        lambda inputs: (inputs / "input").touch(),
        lambda inputs: [inputs / "input"],
        program=(sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('changed')"),
    )
    assert kill_repeatedly(scenario, tmp_path / "work", 0).faults == ["the inputs have changed"]
