"""Memory that is available: the system's, within the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from wsi2ihc.system import available_memory_bytes

MEMINFO = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:   20000000 kB\n"


def write(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, **{"proc/meminfo": MEMINFO})
    return tmp_path


def test_memory_of_the_file_cache_is_available(root: Path) -> None:
    assert available_memory_bytes(root) == 20_000_000 * 1024


def test_a_group_limits_what_is_available_and_files_in_its_cache_do_not_count(root: Path) -> None:
    group = "sys/fs/cgroup/slurm/job_1"
    write(root, **{
        "proc/self/cgroup": "0::/slurm/job_1\n",
        f"{group}/memory.max": "4000000000\n", f"{group}/memory.current": "3000000000\n",
        f"{group}/memory.stat": "anon 5\ninactive_file 500000000\n",
        "sys/fs/cgroup/slurm/memory.max": "max\n", "sys/fs/cgroup/slurm/memory.current": "1\n",
    })  # fmt: skip
    assert available_memory_bytes(root) == 1_500_000_000
    write(root, **{"sys/fs/cgroup/slurm/memory.max": "1000\n"})
    assert available_memory_bytes(root) == 999, "the group above it"


def test_groups_of_the_first_version_count(root: Path) -> None:
    write(root, **{
        "proc/self/cgroup": "3:cpu,cpuacct:/a\n2:memory:/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "2000\n",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "500\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "500\n",
    })  # fmt: skip
    assert available_memory_bytes(root) == 1500


def test_a_container_sees_its_own_group_as_the_root(root: Path) -> None:
    write(root, **{
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "7000\n", "sys/fs/cgroup/memory.current": "6000\n",
    })  # fmt: skip
    assert available_memory_bytes(root) == 1000


def test_other_systems_do_not_tell(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path) is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_it_is_at_most_what_the_system_says() -> None:
    found = available_memory_bytes()
    assert found is not None
    assert 0 <= found <= 1.1 * psutil.virtual_memory().available
