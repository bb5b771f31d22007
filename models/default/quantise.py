#!/usr/bin/env python3
# ruff: noqa
# mypy: ignore-errors
"""Static int8 quantisation (QDQ) of what convert.py writes; needs onnxruntime, onnx and opencv.

usage: quantise.py IN_f32.onnx OUT.onnx FILM [7]       7: 7-bit weights, which cannot saturate on x86 without VNNI

Weights int8 for each output channel, activations uint8 for each tensor: least and greatest over 40 views of 40 pictures of
the film, none of which are among the 30 that it was judged by.
"""

import os, sys, tempfile
import cv2, numpy as np, onnx, onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

OPS = ["Conv", "LeakyRelu", "Concat", "MaxPool", "Resize", "Add"]


def pictures(video, size):
    cap = cv2.VideoCapture(video)
    F = []
    while True:
        ok, f = cap.read()
        if not ok:
            break
        F.append(f)
    n = len(F)
    judged = set(np.linspace(0, n - 1, 32)[1:-1].round().astype(int))
    take = [i for i in np.linspace(0, n - 1, 45)[1:-1].round().astype(int) if i not in judged][:40]
    rng = np.random.default_rng(1)
    for k, i in enumerate(take):
        f = F[i]
        h, w = f.shape[:2]
        if k % 4 == 0:  # the whole picture at 1, 1/2, 1/3 in the corner of a grey square
            z = (1.0, 0.5, 0.33)[k // 4 % 3]
            g = cv2.resize(f, None, fx=z, fy=z, interpolation=cv2.INTER_AREA)
            c = np.full((w, w, 3), 110, np.uint8)
            c[: g.shape[0], : g.shape[1]] = g
        else:  # a square cut out, from a tenth of the picture up to its height: things from very small to filling the tile
            n = int(120 * (h / 120) ** rng.random())
            x, y = int(rng.integers(0, w - n + 1)), int(rng.integers(0, h - n + 1))
            if k % 4 == 1:
                n = int(rng.integers(110, 240))
                x, y = w - n, int(rng.integers(0, 40))  # the parked van and car
            c = cv2.convertScaleAbs(
                f[y : y + n, x : x + n], alpha=float(rng.uniform(0.7, 1.3)), beta=float(rng.uniform(-25, 25))
            )
        yield {"image": cv2.resize(c, (size, size))[None]}


class Reader(CalibrationDataReader):
    def __init__(self, it):
        self.it = it

    def get_next(self):
        return next(self.it, None)


def main(src, dst, video, rr=""):
    size = onnx.load(src).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    with tempfile.TemporaryDirectory() as d:
        pre = os.path.join(d, "pre.onnx")
        quant_pre_process(src, pre, skip_symbolic_shape=True)
        tail = [n.name for n in onnx.load(pre).graph.node if n.op_type in ("Softmax", "MatMul", "Gather")]
        quantize_static(
            pre,
            dst,
            Reader(pictures(video, size)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=bool(rr),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=OPS,
            nodes_to_exclude=tail,
        )
    m = onnx.load(dst)
    g = m.graph
    P = {n.output[0]: n for n in g.node}
    first = next(n for n in g.node if n.op_type == "Conv")
    d = P[first.input[0]]  # the image is quantised as it comes (scale 1, zero point 116): nothing may sit in between
    assert (
        d.op_type == "DequantizeLinear" and P[d.input[0]].op_type == "Transpose" and P[d.input[0]].input[0] == "image"
    ), d
    used = {i for n in g.node for i in n.input}
    for t in [t for t in g.initializer if t.name not in used]:
        g.initializer.remove(t)
    keep = [o for o in m.opset_import if o.domain == ""]
    del m.opset_import[:]
    m.opset_import.extend(keep)  # QDQ uses nothing but ONNX's own operators
    del g.value_info[:]
    del m.metadata_props[:]
    m.producer_name = "tfjs_to_onnx + onnxruntime.quantization"
    onnx.checker.check_model(m, full_check=True)
    onnx.save(m, dst)
    print(dst, os.path.getsize(dst), "bytes", [(o.domain, o.version) for o in m.opset_import], "ir", m.ir_version)


if __name__ == "__main__":
    main(*sys.argv[1:])
