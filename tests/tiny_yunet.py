"""A network in the form of YuNet, written byte by byte: it takes red squares for faces.

Its inputs, outputs and their meaning are those of the real one; what lies between is the mean of
red, the last channel, over cells of 32 pixels. So whatever calls OpenCV's FaceDetectorYN can be
tested without a download.
"""

import math
import struct

STRIDES = (8, 16, 32)
FLOAT, INT64 = 1, 7


def write(path, *, side=48, bias=0.0):
    """Write the ONNX file.

    Args:
        path: Where to.
        side: Pixels of a face's side, wherever one is.
        bias: Is added to each score; other files have another digest.
    """
    nodes, numbers, outputs = [], [], []
    for stride in STRIDES:
        pool = node("AveragePool", ["input"], [f"mean_{stride}"], kernel_shape=[stride] * 2)
        nodes.append(pool + attribute("strides", [stride] * 2))
        seeing = stride == STRIDES[-1]
        share = 1 / 255 if seeing else 0.0
        middle, log_size = 0.5, math.log(side / stride)
        heads = {
            "cls": (share, [bias if seeing else 0.0]),
            "obj": (share, [bias if seeing else 0.0]),
            "bbox": (0.0, [middle, middle, log_size, log_size]),
            "kps": (0.0, [0.0] * 10),
        }
        for head, (weight, biases) in heads.items():
            name, width = f"{head}_{stride}", len(biases)
            numbers += [
                floats(f"{name}_w", [width, 3, 1, 1], [0.0, 0.0, weight] * width),
                floats(f"{name}_b", [width], biases),
                longs(f"{name}_shape", [1, -1, width]),
            ]
            convolved = [f"mean_{stride}", f"{name}_w", f"{name}_b"]
            nodes += [
                node("Conv", convolved, [f"{name}_c"], kernel_shape=[1, 1]),
                node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                node("Reshape", [f"{name}_t", f"{name}_shape"], [name]),
            ]
            outputs.append(name)
    order = {head: number for number, head in enumerate(("cls", "obj", "bbox", "kps"))}
    outputs.sort(key=lambda name: (order[name.split("_")[0]], int(name.split("_")[1])))
    graph = b"".join(part(1, each) for each in nodes) + part(2, b"tiny")
    graph += b"".join(part(5, each) for each in numbers)
    graph += part(11, value("input", [1, 3, 320, 320]))
    graph += b"".join(part(12, value(name, [])) for name in outputs)
    opset = part(1, b"") + number(2, 11)
    path.write_bytes(number(1, 6) + part(7, graph) + part(8, opset))
    return path


# Protocol buffers, as far as ONNX needs them here.


def varint(whole):
    whole &= (1 << 64) - 1
    found = b""
    while True:
        whole, low = whole >> 7, whole & 127
        found += bytes([low | (128 if whole else 0)])
        if not whole:
            return found


def number(field, whole):
    return varint(field << 3) + varint(whole)


def part(field, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def attribute(name, whole):
    ints = b"".join(number(8, each) for each in whole)
    return part(5, part(1, name) + ints + number(20, 7))


def node(kind, inputs, outputs, **attributes):
    found = b"".join(part(1, each) for each in inputs)
    found += b"".join(part(2, each) for each in outputs)
    found += part(3, outputs[0] + "_node") + part(4, kind)
    return found + b"".join(attribute(name, whole) for name, whole in attributes.items())


def floats(name, dims, values):
    raw = struct.pack(f"<{len(values)}f", *values)
    shape = b"".join(number(1, each) for each in dims)
    return shape + number(2, FLOAT) + part(8, name) + part(9, raw)


def longs(name, values):
    raw = struct.pack(f"<{len(values)}q", *values)
    return number(1, len(values)) + number(2, INT64) + part(8, name) + part(9, raw)


def value(name, dims):
    shape = b"".join(part(1, number(1, each)) for each in dims)
    return part(1, name) + part(2, part(1, number(1, FLOAT) + part(2, shape)))
