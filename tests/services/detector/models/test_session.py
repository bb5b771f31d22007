"""The provider that is used in the end, and int8 on a processor that saturates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import structlog

from services.detector.config import DetectorSection
from services.detector.models.bundle import DEFAULT_BUNDLE
from services.detector.models.model import load_model
from services.detector.models.onnx_file import OnnxFile, inspect_file
from services.detector.models.session import has_exact_int8, open_session

NETWORK = DEFAULT_BUNDLE / "nanodet_g_480_int8.onnx"
FLAGS = "processor\t: 0\nflags\t\t: fpu sse4_1 avx2 {}\nbugs\t\t: none\n"


@pytest.mark.parametrize(
    ("flags", "machine", "exact"),
    [
        ("avx512f avx512_vnni", "x86_64", True),
        ("avx_vnni", "x86_64", True),
        ("avx512f avx512bw", "x86_64", False),
        ("", "x86_64", False),
        ("", "aarch64", True),
    ],
)
def test_vnni_is_read_from_the_flags_of_the_processor(tmp_path: Path, flags: str, machine: str, exact: bool) -> None:
    (tmp_path / "cpuinfo").write_text(FLAGS.format(flags))
    assert has_exact_int8(tmp_path / "cpuinfo", machine) == exact


def test_a_processor_without_known_flags_is_assumed_to_saturate(tmp_path: Path) -> None:
    assert not has_exact_int8(tmp_path / "nowhere", "x86_64")


@pytest.mark.parametrize(
    ("largest", "flags", "asked"),
    [(127, "avx2", True), (64, "avx2", False), (None, "avx2", False), (127, "avx_vnni", False)],
)
def test_int8_is_made_exact_only_on_a_processor_that_saturates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int | None, flags: str, asked: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("services.detector.models.session.has_exact_int8.__defaults__", (Path(), "x86_64"))
    (tmp_path / "cpuinfo").write_text(FLAGS.format(flags))
    with structlog.testing.capture_logs() as logs:
        session = open_session(NETWORK, OnnxFile(largest_int8=largest), (), tmp_path / "cpuinfo")
    assert [log["event"] for log in logs] == (["int8 made exact"] if asked else [])
    options = session.get_session_options()
    read = options.get_session_config_entry
    assert read("session.intra_op.allow_spinning") == "0"
    if asked:
        assert read("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            read("session.x64quantprecision")


def test_exact_int8_gives_the_same_boxes(
    tmp_path: Path, place: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    """The option must not change the boxes on a processor with VNNI, which does not saturate."""
    if not has_exact_int8():
        pytest.skip("this processor has no VNNI: both runs would be made exact")
    (tmp_path / "cpuinfo").write_text(FLAGS.format("avx2"))
    file = inspect_file(NETWORK)
    image = np.ascontiguousarray(place[100:580, 500:980])[None]
    outputs = [
        open_session(NETWORK, file, (), cpuinfo).run(["boxes", "scores"], {"image": image})
        for cpuinfo in (Path("/proc/cpuinfo"), tmp_path / "cpuinfo")
    ]
    for plain, exact in zip(*outputs, strict=True):
        np.testing.assert_allclose(plain, exact, atol=1e-5)


def save_in_own_format(folder: Path) -> Path:
    """Convert the network to a file of ONNX Runtime's own format, which gives equal boxes on each processor."""
    path = folder / "nanodet.ort"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.x64quantprecision", "1")
    onnxruntime.InferenceSession(str(NETWORK), options, providers=["CPUExecutionProvider"])
    return path


def test_a_file_in_the_runtimes_own_format_is_mapped(
    tmp_path: Path, place: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    path = save_in_own_format(tmp_path)
    model = load_model(DetectorSection(model=path, score_threshold=0.4))
    assert str(path) in Path("/proc/self/maps").read_text()
    (found,), (wanted,) = model.detect([place[:, :688]]), load_model(DetectorSection()).detect([place[:, :688]])
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=0.1)
    assert len(found) > 0


@pytest.mark.parametrize(("flags", "events"), [("avx2", ["int8 not made exact"]), ("avx2 avx_vnni", [])])
def test_a_file_in_the_runtimes_own_format_is_not_made_exact(tmp_path: Path, flags: str, events: list[str]) -> None:
    (tmp_path / "cpuinfo").write_text(FLAGS.format(flags))
    path = save_in_own_format(tmp_path)
    with structlog.testing.capture_logs() as logs:
        open_session(path, inspect_file(path), (), tmp_path / "cpuinfo")
    assert [entry["event"] for entry in logs] == events


def test_a_provider_that_is_not_installed_falls_back_to_the_cpu() -> None:
    with structlog.testing.capture_logs() as logs:
        model = load_model(DetectorSection(providers=("NoSuchExecutionProvider",)))
    assert model.provider == "CPUExecutionProvider"
    (entry,) = [entry for entry in logs if entry["event"].startswith("provider")]
    assert (entry["event"], entry["provider"]) == ("provider not installed", "NoSuchExecutionProvider")
    assert entry["instead"] == "CPUExecutionProvider"


def test_the_providers_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: object, providers: list[str]) -> object:
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    installed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: installed)
    with structlog.testing.capture_logs() as logs:
        model = load_model(DetectorSection(providers=("CUDAExecutionProvider", "CPUExecutionProvider")))
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"]]
    # The provider was listed, but could not be used: the one in use is reported.
    assert model.provider == "CPUExecutionProvider"
    assert [entry for entry in logs if entry["event"].startswith("provider")] == [
        {
            "event": "provider not usable",
            "log_level": "warning",
            "provider": "CUDAExecutionProvider",
            "instead": "CPUExecutionProvider",
        }
    ]
