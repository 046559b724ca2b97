"""Each example runs as a user runs it: as a script, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import WAITING

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str) -> str:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    threads = {} if os.environ.get("PYTEST_XDIST_WORKER") is None else {"OMP_NUM_THREADS": "1"}  # waiting threads starve other workers
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "160"} | threads
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=WAITING, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_efficientnet_lite0(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    text = run("efficientnet_lite0.py", "--quick", "--out", str(tmp_path))
    assert "same top-1 class as float" in text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= 12
    assert "http://" not in page and "https://" not in page  # self-contained
    assert (tmp_path / "efficientnet-lite0.qc").is_file()
    assert list((tmp_path / "program").glob("*.py"))
    assert "s without labels" in text and (tmp_path / "tuned" / "report.html").is_file()


@pytest.mark.slow
def test_mobilenet_v2() -> None:
    pytest.importorskip("PIL")
    text = run("mobilenet_v2.py", "--quick")
    assert "the same bits" in text
    assert "100.0%" in text


@pytest.mark.slow
def test_eager_mobilenet_v2() -> None:
    text = run("eager_mobilenet_v2.py", "--quick")
    assert "the same bits" in text and text.count("eager, ") == 2
    assert all(float(decibels) > 25 for decibels in re.findall(r"(\S+) dB", text))


@pytest.mark.slow
def test_eager_resnet18() -> None:
    """The faulty script is told its three faults; the mended one runs in int8."""
    pytest.importorskip("skimage")
    text = run("eager_resnet18.py", "--quick")
    assert "has no QuantStub" in text and "0 of 39 observers saw data" in text and "layer1.0.relu was fused into layer1.0.conv1" in text
    assert "100.0%" in text


@pytest.mark.slow
def test_resnet18() -> None:
    pytest.importorskip("skimage")
    text = run("resnet18.py", "--quick")
    assert "100.0%" in text


@pytest.mark.slow
def test_debug_accuracy(tmp_path: Path) -> None:
    """bisect and compare both end at the layer that was spoiled, and keeping it float mends the network."""
    pytest.importorskip("efficientnet_lite_pytorch")
    text = run("debug_accuracy.py", "--quick", "--look-at", "2", "--out", str(tmp_path))
    assert "pass freeze_qparams" in text and "(_blocks.0._project_conv, " in text
    nodes = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["nodes"]
    assert nodes[0]["module_path"] == "_blocks.0._project_conv" and nodes[0]["own_channel"] < 5
    broken, mended = (float(share) for share in re.findall(r"top-1 agreement (\S+)%", text))
    assert broken < 50 and mended > 80


@pytest.mark.slow
def test_qat_digits() -> None:
    """tests/test_qat_digits.py looks at the figures."""
    pytest.importorskip("sklearn")
    text = run("qat_digits.py", "--quick")
    assert text.count("100.0 % same class") == 2 and "8 bits" in text and "4 bits" in text


@pytest.mark.slow
def test_autotune(tmp_path: Path) -> None:
    """The tuned network is right more often than what it began with."""
    pytest.importorskip("sklearn")
    text = run("autotune.py", "--quick", "--out", str(tmp_path))
    float_, default, tuned = (float(share) for share in re.findall(r"([\d.]+) % +│", text))
    assert default + 1 < tuned <= float_ + 1 and (tmp_path / "report.html").is_file()


def test_custom_op() -> None:
    text = run("custom_op.py")
    assert "cheaper_silu: silu became hardswish" in text and "external.__main__.sinc_int8" in text
    table = text.split("cheaper_silu")[0]
    assert table.count("int8") >= 6 and "no int8" not in table and "no kernel" not in table
    assert text.count("conv2d_new") >= 3 and "mul" not in text.split("def forward")[1]


def test_photo_crops_are_seeded_and_disjoint() -> None:
    pytest.importorskip("skimage")
    code = (
        "import photos, torch\n"
        "a, b = photos.crops(photos.EVALUATION, 4, 32, seed=2), photos.crops(photos.EVALUATION, 4, 32, seed=2)\n"
        "assert a.shape == (4, 3, 32, 32) and torch.equal(a, b)\n"
        "assert not set(photos.CALIBRATION) & set(photos.EVALUATION)\n"
        "assert (photos.to_tensor(photos.to_image(a[0]), 32) - a[0]).abs().max() <= 0.5 / 128 + 1e-6  # half a pixel value\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, check=True, timeout=WAITING)


@pytest.mark.slow
def test_dynamic_lstm() -> None:
    text = run("dynamic_lstm.py", "--quick")
    assert "int8 dynamic" in text and "the same bits" in text
    perplexities = [float(line.split()[-3]) for line in text.splitlines() if line.startswith(("float", "int8,"))]
    assert len(perplexities) == 4 and max(perplexities) < 1.01 * min(perplexities)


@pytest.mark.slow
def test_native_c(tmp_path: Path) -> None:
    """With the portable kernels; tests/test_native_export.py builds all of them, as the CMake file says."""
    said = run("native_c.py", "--quick", "--folder", str(tmp_path / "c"))
    assert "to the last bit" in said and (tmp_path / "c" / "small_net.h").exists()


@pytest.mark.slow
def test_onnx_runtimes(tmp_path: Path) -> None:
    for needed in ("onnx_ir", "onnxruntime", "openvino", "efficientnet_lite_pytorch", "skimage"):
        pytest.importorskip(needed)
    said = run("onnx_runtimes.py", "--quick", "--out", str(tmp_path))
    rows = {line.split("\u2502")[1].strip(): line.split("\u2502") for line in said.splitlines() if line.count("\u2502") >= 5}
    near = {way: float(rows[way][2]) for way in ("ours, torch", "ONNX Runtime", "OpenVINO")}
    assert min(near["ONNX Runtime"], near["OpenVINO"]) > near["ours, torch"] - 1
    assert len(set(rows["ONNX Runtime"][5].strip().split(" of "))) == 1


def test_serve() -> None:
    """Answers are compared inside of it; a request that the model does not take is refused with the model's message."""
    said = run("serve.py", "--quick")
    assert "comes back with the same bits" in said and "all answers have the bits" in said
    assert re.findall(r"^(\d) at once: \d+ requests", said, re.M) == ["1", "2"] and "another shape: 400, input 'input' must be" in said


@pytest.mark.slow
def test_export_program(tmp_path: Path) -> None:
    said = run("export_program.py", "--folder", str(tmp_path))
    assert said.count("the bits of the reference graph") == 2 and (tmp_path / "small.pt2").is_file()
    assert all(float(decibels) > 25 for decibels in re.findall(r"(\S+) dB", said))
