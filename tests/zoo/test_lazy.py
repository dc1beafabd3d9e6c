"""What `import tubelens` and listing the networks do not import; what a missing extra says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tubelens import zoo
from tubelens.errors import OptionError
from tubelens.zoo import extras

HEAVY = ("pytorchvideo", "transformers", "keras", "onnxruntime", "onnx", "h5py", "cv2", "ray")


@pytest.mark.parametrize(
    "statement",
    [
        "import tubelens",
        "from tubelens import zoo; [r.name for r in zoo.MODELS.values()]",
        "import tubelens.cli",
        "import tubelens as tl; tl.load_model('tsm_r50', 'random')",
    ],
)
def test_no_extra_is_imported(statement: str):
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["slowfast_r50", "x3d_s", "vivit"])
def test_a_missing_extra_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch):
    def absent(package: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    extra = zoo.MODELS[name].extra
    with pytest.raises(
        OptionError, match=rf"needs the extra '{extra}'.*pip install 'tubelens\[{extra}\]'"
    ) as e:
        zoo.load(name, "random")
    assert "\n" not in str(e.value)


def test_installed_looks_without_importing():
    assert extras.installed("torch")
    assert not extras.installed("no_such_package_here")
    assert importlib.util.find_spec("no_such_package_here") is None
