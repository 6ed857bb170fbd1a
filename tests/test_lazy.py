from __future__ import annotations

import subprocess
import sys

import pytest

import wsi2ihc
import wsi2ihc.training
import wsi2ihc.training.data


@pytest.mark.parametrize("package", [wsi2ihc, wsi2ihc.training, wsi2ihc.training.data])
def test_every_public_name_is_found_on_first_use(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is not None
    assert set(package.__all__) - {"__version__"} <= set(dir(package))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"attribute .*nothing"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_packages_bring_no_torch_by_themselves() -> None:
    code = "import sys, wsi2ihc.training.data; print('torch' in sys.modules, 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
