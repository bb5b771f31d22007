#!/usr/bin/env python3
# ruff: noqa
# mypy: ignore-errors
"""COCO-SSD (TFJS graph model, ssdlite_mobilenet_v2) -> ONNX, needs only numpy + onnx (no TensorFlow).
usage: tfjs_cocossd_to_onnx.py MODEL_JSON OUT.onnx [f32|f16|i8]   (f16/i8 = weight storage only, maths stay float32)
input  image  uint8   [1,300,300,3]  RGB, plain resize
output boxes  float32 [1,1917,4]     ymin,xmin,ymax,xmax in 0..1, decoded, no NMS
output scores float32 [1,1917,90]    sigmoid; column i = COCO category id i+1"""

import json, math, os, sys, numpy as np, onnx
from onnx import helper as H, numpy_helper as NH, TensorProto as T

CUT = "Preprocessor/map/TensorArrayStack/TensorArrayGatherV3"


def load(mj):
    j = json.load(open(mj))
    d = os.path.dirname(mj)
    W = {}
    for g in j["weightsManifest"]:
        buf = b"".join(open(os.path.join(d, p), "rb").read() for p in g["paths"])
        o = 0
        for w in g["weights"]:
            assert "quantization" not in w
            dt = np.dtype(w["dtype"])
            n = math.prod(w["shape"])
            W[w["name"]] = np.frombuffer(buf, dt, n, o).reshape(w["shape"])
            o += n * dt.itemsize
    return {n["name"]: n for n in j["modelTopology"]["node"]}, W


class C:
    def __init__(s, nodes, W, store):
        s.N, s.W, s.V, s.nodes, s.init, s.k, s.store = nodes, W, {}, [], {}, 0, store

    def new(s):
        s.k += 1
        return f"t{s.k}"

    def emit(s, op, ins, **a):
        o = s.new()
        s.nodes.append(H.make_node(op, ins, [o], name=f"{op}_{s.k}", **a))
        return o

    def const(s, a):
        a = np.ascontiguousarray(a)
        n = f"c{len(s.init)}"
        if a.dtype == np.float32 and a.size >= 256 and s.store != "f32":
            if s.store == "f16":
                s.init[n] = NH.from_array(a.astype(np.float16), n)
                return s.emit("Cast", [n], to=T.FLOAT)
            if a.ndim == 4:
                q = (
                    (np.maximum(np.abs(a).reshape(a.shape[0], -1).max(1), 1e-12) / 127)
                    .reshape(-1, 1, 1, 1)
                    .astype(np.float32)
                )
                s.init[n] = NH.from_array(np.clip(np.rint(a / q), -127, 127).astype(np.int8), n)
                s.init[n + "s"] = NH.from_array(q, n + "s")
                return s.emit("Mul", [s.emit("Cast", [n], to=T.FLOAT), n + "s"])
        s.init[n] = NH.from_array(a, n)
        return n

    # a value is np.ndarray (constant) or (tensor name, NHWC shape, layout)
    def nhwc(s, v):
        if isinstance(v, np.ndarray) or v[2] != "nchw":
            return v
        return (s.emit("Transpose", [v[0]], perm=[0, 2, 3, 1]), v[1], "")

    def nchw(s, v):
        return v if v[2] == "nchw" else (s.emit("Transpose", [v[0]], perm=[0, 3, 1, 2]), v[1], "nchw")

    def name(s, v):
        return s.const(v) if isinstance(v, np.ndarray) else v[0]

    def conv(s, x, w, n, dw):
        x = s.nchw(x)
        _, h, wd, ci = x[1]
        st = [int(i) for i in n["attr"]["strides"]["list"]["i"]][1:3]
        pad = n["attr"]["padding"]["s"]
        pad = bytes(pad).decode() if isinstance(pad, list) else pad
        same = pad in ("SAME", "U0FNRQ==")
        assert same or pad in ("VALID", "VkFMSUQ="), pad
        kh, kw = w.shape[:2]
        oh, ow, pads = 0, 0, [0] * 4
        o = []
        for a, (i, k, t) in enumerate(((h, kh, st[0]), (wd, kw, st[1]))):
            r = -(-i // t) if same else (i - k) // t + 1
            p = max((r - 1) * t + k - i, 0) if same else 0
            pads[a], pads[a + 2] = p // 2, p - p // 2
            o.append(r)
        if dw:
            co = w.shape[2] * w.shape[3]
            k = w.transpose(2, 3, 0, 1).reshape(co, 1, kh, kw)
        else:
            co = w.shape[3]
            k = w.transpose(3, 2, 0, 1)
        return [
            "conv",
            x,
            k.astype(np.float32),
            np.zeros(co, np.float32),
            dict(strides=st, pads=pads, kernel_shape=[kh, kw], group=ci if dw else 1),
            (1, o[0], o[1], co),
        ]

    def flush(s, p):
        """materialise a pending conv (weights with folded batch-norm)"""
        if isinstance(p, list) and p and isinstance(p[0], str) and p[0] == "conv":
            _, x, k, b, a, shp = p[:6]
            if len(p) == 6:
                p.append((s.emit("Conv", [x[0], s.const(k), s.const(b)], **a), shp, "nchw"))
            return p[6]
        return p

    def raw(s, ref):
        """value of a TF tensor reference; a pending conv stays pending"""
        name, _, port = ref.partition(":")
        name = name.lstrip("^")
        if name not in s.V:
            s.V[name] = s.ev(s.N[name])
        v = s.V[name]
        if isinstance(v, list) and not isinstance(v[0], str):
            v = v[int(port or 0)]
        return np.asarray(v) if isinstance(v, np.generic) else v

    def g(s, ref):
        return s.flush(s.raw(ref))

    def affine(s, ref, mul, add):
        """y = x*mul + add per channel; folded into a still-pending conv"""
        v = s.raw(ref)
        one = lambda a, c: np.broadcast_to(np.asarray(a, np.float32).reshape(-1), (c,))
        if isinstance(v, list) and isinstance(v[0], str) and len(v) == 6:
            c = v[3].size
            m, b = one(mul, c), one(add, c)
            return ["conv", v[1], v[2] * m.reshape(-1, 1, 1, 1), v[3] * m + b, v[4], v[5]]
        v = s.g(ref)
        t = v[0]
        sh = (
            (lambda a: np.asarray(a, np.float32).reshape(-1, 1, 1) if np.size(a) > 1 else np.float32(a).reshape(()))
            if v[2] == "nchw"
            else (lambda a: np.asarray(a, np.float32))
        )
        if not np.all(np.asarray(mul) == 1):
            t = s.emit("Mul", [t, s.const(sh(mul))])
        if not np.all(np.asarray(add) == 0):
            t = s.emit("Add", [t, s.const(sh(add))])
        return (t, v[1], v[2])

    def ev(s, n):
        op, I = n["op"], [i for i in n.get("input", []) if not i.startswith("^")]
        A = n.get("attr", {})
        if n["name"] == CUT:
            return (s.emit("Cast", ["image"], to=T.FLOAT), (1, 300, 300, 3), "")
        if op == "Const":
            return s.W[n["name"]]
        if op in ("Identity",):
            return s.raw(I[0])
        if op == "Conv2D":
            return s.conv(s.g(I[0]), s.g(I[1]), n, False)
        if op == "DepthwiseConv2dNative":
            return s.conv(s.g(I[0]), s.g(I[1]), n, True)
        if op == "FusedBatchNorm":
            x, ga, be, mu, va = I
            ga, be, mu, va = map(s.g, (ga, be, mu, va))
            m = ga / np.sqrt(va + A["epsilon"]["f"])
            return s.affine(x, m, be - mu * m)
        if op in ("Add", "Mul", "Sub", "BiasAdd"):
            a, b = s.raw(I[0]), s.raw(I[1])
            ca, cb = isinstance(a, np.ndarray), isinstance(b, np.ndarray)
            f = {"Add": np.add, "BiasAdd": np.add, "Mul": np.multiply, "Sub": np.subtract}[op]
            if ca and cb:
                return f(a, b)
            if (ca or cb) and op in ("Add", "Mul", "BiasAdd", "Sub") and not (op == "Sub" and ca):
                x, k = (I[1], a) if ca else (I[0], b)
                p = s.raw(x)
                if (
                    not isinstance(p, np.ndarray)
                    and len(
                        p[5]
                        if isinstance(p, list) and isinstance(p[0], str)
                        else (p if isinstance(p, tuple) else s.g(x))[1]
                    )
                    == 4
                    and (k.size == 1 or k.ndim == 1)
                ):
                    return s.affine(x, k if op == "Mul" else 1, 0 if op == "Mul" else (-k if op == "Sub" else k))
            a, b = s.g(I[0]), s.g(I[1])
            if not ca and not cb and a[2] == b[2] == "nchw":
                return (s.emit("Add" if op == "BiasAdd" else op, [a[0], b[0]]), a[1], "nchw")
            a, b = s.nhwc(a), s.nhwc(b)
            shp = np.broadcast_shapes(a.shape if ca else a[1], b.shape if cb else b[1])
            return (s.emit("Add" if op == "BiasAdd" else op, [s.name(a), s.name(b)]), shp, "")
        if op == "AddN":
            v = [s.nchw(s.g(i)) for i in I]
            t = v[0][0]
            for u in v[1:]:
                t = s.emit("Add", [t, u[0]])
            return (t, v[0][1], "nchw")
        if op == "Relu6":
            v = s.g(I[0])
            return (s.emit("Clip", [v[0], s.const(np.float32(0)), s.const(np.float32(6))]), v[1], v[2])
        if op == "Shape":
            v = s.g(I[0])
            return np.array(v.shape if isinstance(v, np.ndarray) else v[1], np.int32)
        v = [s.nhwc(s.g(i)) for i in I]
        x = v[0]
        cst = all(isinstance(u, np.ndarray) for u in v)
        shape = lambda u: u.shape if isinstance(u, np.ndarray) else u[1]
        i64 = lambda a: s.const(np.asarray(a, np.int64).reshape(-1))

        def rs(u, shp):
            return (
                u.reshape(shp) if isinstance(u, np.ndarray) else (s.emit("Reshape", [u[0], i64(shp)]), tuple(shp), "")
            )

        if op == "Reshape":
            t = [int(i) for i in v[1].reshape(-1)]
            n_ = math.prod(shape(x))
            if -1 in t:
                t[t.index(-1)] = n_ // -math.prod(t)
            return rs(x, tuple(t))
        if op == "ExpandDims":
            sh = list(shape(x))
            a = int(v[1])
            sh.insert(a if a >= 0 else a + len(sh) + 1, 1)
            return rs(x, tuple(sh))
        if op == "Squeeze":
            d = [int(i) for i in A.get("squeeze_dims", {}).get("list", {}).get("i", [])]
            sh = shape(x)
            d = [i % len(sh) for i in d] or [i for i, k in enumerate(sh) if k == 1]
            return rs(x, tuple(k for i, k in enumerate(sh) if i not in d))
        if op == "StridedSlice":
            assert cst and x.ndim == 1
            b, e = int(v[1][0]), int(v[2][0])
            return (
                x[b]
                if int(A.get("shrink_axis_mask", {}).get("i", 0))
                else x[(None if int(A["begin_mask"]["i"]) else b) : (None if int(A["end_mask"]["i"]) else e)]
            )
        if op == "Pack":
            a = int(A.get("axis", {}).get("i", 0))
            if cst:
                return np.stack(v, a)
            sh = list(shape(x))
            sh.insert(a, 1)
            w = [s.name(rs(u, tuple(sh))) for u in v]
            sh[a] = len(w)
            return (s.emit("Concat", w, axis=a), tuple(sh), "")
        if op == "Unpack":
            a = int(A.get("axis", {}).get("i", 0))
            k = int(A["num"]["i"])
            sh = list(shape(x))
            sh.pop(a)
            if cst:
                return [np.take(x, i, a) for i in range(k)]
            return [(s.emit("Gather", [x[0], s.const(np.int64(i))], axis=a), tuple(sh), "") for i in range(k)]
        if op == "ConcatV2":
            ax = int(v[-1])
            v = v[:-1]
            sh = list(shape(v[0]))
            ax %= len(sh)
            sh[ax] = sum(shape(u)[ax] for u in v)
            return np.concatenate(v, ax) if cst else (s.emit("Concat", [s.name(u) for u in v], axis=ax), tuple(sh), "")
        if op == "Transpose":
            p = [int(i) for i in v[1]]
            return x.transpose(p) if cst else (s.emit("Transpose", [x[0]], perm=p), tuple(x[1][i] for i in p), "")
        if op == "Tile":
            return (
                np.tile(x, v[1])
                if cst
                else (s.emit("Tile", [x[0], i64(v[1])]), tuple(a * int(b) for a, b in zip(x[1], v[1])), "")
            )
        if op in ("Exp", "Sigmoid"):
            return np.exp(x) if cst else (s.emit(op, [x[0]]), x[1], "")
        if op == "Slice":
            b = v[1]
            e = [sh if z < 0 else int(a + z) for a, z, sh in zip(b, v[2], x[1])]
            return (s.emit("Slice", [x[0], i64(b), i64(e)]), tuple(int(q - w) for q, w in zip(e, b)), "")
        raise SystemExit(f"unhandled {op} {n['name']}")


def main(mj, out, store="f32"):
    N, W = load(mj)
    c = C(N, W, store)
    o = []
    for nm, src, shp in (
        ("boxes", "Postprocessor/ExpandDims_1", (1, 1917, 4)),
        ("scores", "Postprocessor/Slice", (1, 1917, 90)),
    ):
        v = c.nhwc(c.g(src))
        assert math.prod(v[1]) == math.prod(shp), v
        sh = c.const(np.array(shp, np.int64))
        c.nodes.append(H.make_node("Reshape", [v[0], sh], [nm], name=nm))
        o.append(H.make_tensor_value_info(nm, T.FLOAT, shp))
    g = H.make_graph(
        c.nodes,
        "coco_ssdlite_mobilenet_v2",
        [H.make_tensor_value_info("image", T.UINT8, (1, 300, 300, 3))],
        o,
        list(c.init.values()),
    )
    m = H.make_model(g, opset_imports=[H.make_opsetid("", 15)], producer_name="tfjs_cocossd_to_onnx")
    m.ir_version = 8
    onnx.checker.check_model(m)
    onnx.save(m, out)
    print(out, os.path.getsize(out), "bytes", len(c.nodes), "nodes")


if __name__ == "__main__":
    main(*sys.argv[1:])
