"""Open ONNX Runtime sessions, with options for a machine that runs other services."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import onnxruntime
import structlog

from services.detector.models.errors import ModelError
from services.detector.models.onnx_file import OnnxFile

CPU = "CPUExecutionProvider"
CPUINFO = Path("/proc/cpuinfo")
VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
"""Flags of x86 processors that sum products of int8 in 32 bits."""
OWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})

log = structlog.get_logger()


def open_session(path: Path, file: OnnxFile, providers: tuple[str, ...], cpuinfo: Path = CPUINFO) -> Any:
    """Load a network.

    Args:
        path: The file. External weights are found relative to it. A file of ONNX Runtime's own format is
            memory-mapped.
        file: Its content, as inspected.
        providers: Names of ONNX Runtime's execution providers, in order of preference. Providers that are not installed
            are skipped with a warning; the CPU is always the last.
        cpuinfo: File with the processor's flags.

    Returns:
        The ``onnxruntime.InferenceSession``.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
    """
    installed = onnxruntime.get_available_providers()
    usable = [name for name in providers if name in installed]
    for name in providers:
        if name not in installed:
            log.warning("provider not installed", provider=name, installed=installed, instead=(*usable, CPU)[0])
    options = onnxruntime.SessionOptions()
    # One thread, the caller's: the budget measures its CPU time.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # its exceptions contain the same text
    # Do not let idle threads spin, because the cores are shared with the stitcher.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if file.runtime_format:
        # Keep the weights in the page cache, which all processes share, instead of in each process's memory.
        options.add_session_config_entry("session.load_model_format", "ORT")
        options.add_session_config_entry("session.use_memory_mapped_ort_model", "1")
        options.add_session_config_entry("session.use_ort_model_bytes_for_initializers", "1")
    if file.may_saturate and not has_exact_int8(cpuinfo):
        # This makes ONNX Runtime shift int8 weights to uint8, whose kernels sum in 32 bits: slower, but exact.
        options.add_session_config_entry("session.x64quantprecision", "1")
        log.info("int8 made exact", reason="this processor has no VNNI: 8-bit weights could saturate")
    elif file.runtime_format and not has_exact_int8(cpuinfo):
        # ONNX Runtime changes weights only while it optimises a graph, which has been done for such a file.
        log.warning(
            "int8 not made exact",
            reason="this processor has no VNNI: if the file has 8-bit weights, they could saturate, unless it was made "
            "with session.x64quantprecision=1",
        )
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(dict.fromkeys([*usable, CPU])))
    except Exception as error:  # noqa: BLE001  onnxruntime's own errors share no base but Exception
        raise ModelError(f"the model {path} is not a usable ONNX file: {_explain(file, str(error))}") from None
    # ONNX Runtime falls back to the next provider without an error, for example without a driver.
    used = session.get_providers()[0]
    if usable and used != usable[0]:
        log.warning("provider not usable", provider=usable[0], instead=used)
    return session


def has_exact_int8(cpuinfo: Path = CPUINFO, machine: str = platform.machine()) -> bool:
    """Return whether the processor multiplies uint8 by int8 without saturation: all do, except x86 without VNNI."""
    if machine not in {"x86_64", "AMD64", "i686"}:
        return True
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False  # the exact kernels are correct on every processor, and only slower
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not VNNI.isdisjoint(flags)


def _explain(file: OnnxFile, error: str) -> str:
    """Explain to the operator why ONNX Runtime rejects a file."""
    version = onnxruntime.__version__
    newest = re.search(r"max supported IR version: (\d+)", error)
    if newest and file.ir_version > int(newest[1]):
        return (
            f"it has the IR version {file.ir_version}, and ONNX Runtime {version} reads up to {newest[1]}: export it "
            "with an older version of onnx, or install a newer onnxruntime"
        )
    latest = re.search(r"support for domain \S+ is till opset (\d+)", error)
    if latest and max(file.opsets.values(), default=0) > int(latest[1]):
        return (
            f"it needs opset {max(file.opsets.values())}, and ONNX Runtime {version} has up to {latest[1]}: export it "
            f"with opset={latest[1]} or lower"
        )
    foreign = sorted((domain, operator) for domain, operator in file.operators if domain not in OWN_DOMAINS)
    tensorrt = sorted(operator for _, operator in file.operators if operator.upper().endswith("_TRT"))
    if tensorrt:
        return (
            f"it uses the operator {tensorrt[0]} of TensorRT, which ONNX Runtime does not have: export it without "
            "non-maximum suppression and for no device in particular"
        )
    if foreign:
        domain, operator = foreign[0]
        return f"it uses the operator {operator} of {domain}, which ONNX Runtime does not have: export it without"
    return plain(error)


def plain(error: object) -> str:
    """Return ONNX Runtime's message in one line, without codes and source locations."""
    flat = re.sub(r"\s*\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", " ".join(str(error).split()))
    return re.sub(r"/\S+\.(cc|h):\d+ ", "", flat)[:400]
