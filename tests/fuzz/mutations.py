"""Ways to spoil a sound file. Each takes a random.Random and the sound value, and gives a spoilt one;
checksums are repaired, so that the damage reaches the code behind them.
"""

import copy
import io
import json
import struct
import zlib

import numpy as np

NUMBERS = (
    0, -1, 1, 0.5, 2**31, 2**63, 2**70, -(2**70), 1e30, 1e308, float("nan"), float("inf"), float("-inf"),
    10**400,
)
VALUES = (
    None, True, False, "", "x", "nan", "\ud800", "../up", "a" * 5000, [], {}, [[]], [1, "2"], {"a": 1},
    [0.5] * 9, *NUMBERS,
)
WORDS = (b"", b"nan", b"inf", b"-1", b"1e400", b"metric", b"\xff\xfe", b"\x00", b"[[1, 2], [3]]", b"9" * 6000)


def spoil_bytes(random, data):
    """Flipped, cut, inserted, doubled or zeroed bytes."""
    data = bytearray(data)
    place = random.randrange(max(1, len(data)))
    length = random.choice((1, 2, 8, 100))
    way = random.choice(("flip", "flip some", "cut", "insert", "double", "drop", "zero", "mark", "empty"))
    if way == "flip" and data:
        data[place] ^= 1 << random.randrange(8)
    elif way == "flip some" and data:
        for _ in range(10):
            data[random.randrange(len(data))] = random.randrange(256)
    elif way == "cut":
        del data[place:]
    elif way == "insert":
        data[place:place] = random.choice(WORDS) or b"\x80"
    elif way == "double":
        data[place:place] = data[place : place + length]
    elif way == "drop":
        del data[place : place + length]
    elif way == "zero":
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif way == "mark":
        data[:0] = random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b" "))
    else:
        data.clear()
    return bytes(data)


def spoil_value(random, value):
    """One value of a JSON tree replaced by one of another type or size, renamed or removed."""
    value = copy.deepcopy(value)
    places = list(walk(value))
    if not places or random.random() < 0.05:
        return random.choice(VALUES)
    holder, key = random.choice(places)
    way = random.choice(("replace", "replace", "replace", "remove", "rename", "wrap", "nest"))
    if way == "replace":
        holder[key] = random.choice(VALUES)
    elif way == "remove":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[random.choice(("", "Z", f"{key} ", str(key).upper()))] = holder.pop(key)
    elif way == "nest":
        for _ in range(random.choice((3, 3000))):
            holder[key] = [holder[key]]
    else:
        holder[key] = [holder[key]]
    return value


def walk(value):
    """(holder, key) of every value inside a JSON tree."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from walk(inner)


def dump(value):
    """JSON as bytes, however deep: NaN, Infinity and lone surrogates as Python writes them."""
    depth, inner = 0, value
    while isinstance(inner, list) and len(inner) == 1:
        depth, inner = depth + 1, inner[0]
    if depth > 500:
        return b"[" * depth + dump(inner) + b"]" * depth
    try:
        return json.dumps(value, indent=1).encode()
    except RecursionError:
        return b'{"nested": ' + b"[" * 3000 + b"]" * 3000 + b"}"


def spoil_json(random, data):
    """A JSON file: its values three times of four, its bytes else."""
    if random.random() < 0.25:
        return spoil_bytes(random, data)
    return dump(spoil_value(random, json.loads(data)))


def spoil_json_lines(random, data):
    """A JSON lines file: one line as `spoil_json` does."""
    lines = data.rstrip(b"\n").split(b"\n")
    place = random.randrange(len(lines))
    lines[place] = spoil_json(random, lines[place]).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


def spoil_png(random, data):
    """A PNG's chunks dropped, doubled, swapped or with other fields, each with its checksum."""
    if random.random() < 0.25:
        return spoil_bytes(random, data)
    chunks, position = [], 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        chunks.append([data[position + 4 : position + 8], data[position + 8 : position + 8 + length]])
        position += 12 + length
    way = random.choice(("header", "header", "text", "text", "drop", "double", "swap", "inside", "pixels"))
    place = random.randrange(len(chunks))
    texts = [chunk for chunk in chunks if chunk[0] == b"tEXt"]
    if way == "header":
        at, choices = random.choice(
            (
                (0, (0, 1, 3, 7, 2**31 - 1)), (4, (0, 1, 5, 60000)), (8, (1, 8, 16, 3)), (9, (0, 2, 3, 4, 6)),
                (12, (1, 9)),
            )
        )
        value = random.choice(choices)
        field = struct.pack(">I", value) if at < 8 else bytes([value])
        chunks[0][1] = chunks[0][1][:at] + field + chunks[0][1][at + len(field) :]
    elif way == "text" and texts:
        chunk = random.choice(texts)
        chunk[1] = chunk[1].split(b"\0")[0] + b"\0" + random.choice(WORDS)
    elif way == "drop":
        del chunks[place]
    elif way == "double":
        chunks.insert(place, chunks[place])
    elif way == "swap":
        chunks[place], chunks[-1 - place] = chunks[-1 - place], chunks[place]
    elif way == "pixels":
        chunks = [[kind, zlib.compress(bytes(3)) if kind == b"IDAT" else body] for kind, body in chunks]
    else:
        chunks[place][1] = spoil_bytes(random, chunks[place][1])
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:8] + b"".join(packed)


def spoil_exr(random, data):
    """An EXR's attributes dropped, renamed, resized or with other values, its table of blocks,
    or its bytes.
    """
    if random.random() < 0.25:
        return spoil_bytes(random, data)
    attributes, position = [], 8
    while data[position]:
        name, kind, rest = data[position:].split(b"\0", 2)
        position += len(name) + len(kind) + 2
        (size,) = struct.unpack_from("<i", data, position)
        attributes.append([name, kind, rest[4 : 4 + size], size])
        position += 4 + size
    rest, way, place = (
        data[position + 1 :],
        random.choice(("value", "window", "channels", "drop", "rename", "size", "table", "flag")), 0,
    )
    place = random.randrange(len(attributes))
    by_name = {entry[0]: entry for entry in attributes}
    version = data[4:8]
    if way == "window":
        entry = by_name[random.choice((b"dataWindow", b"displayWindow"))]
        edges = list(struct.unpack("<4i", entry[2]))
        edges[random.randrange(4)] += random.choice((1, -1, 4, -4, 1000, 2**30, -(2**30)))
        entry[2] = struct.pack("<4i", *(max(-(2**31), min(2**31 - 1, edge)) for edge in edges))
    elif way in ("value", "channels"):
        entry = attributes[place] if way == "value" else by_name[b"channels"]
        body = bytearray(entry[2])
        if body:
            body[random.randrange(len(body))] = random.choice((0, 1, 2, 3, 5, 127, 255))
        entry[2] = bytes(body)
    elif way == "drop":
        del attributes[place]
    elif way == "rename":
        attributes[place][random.randrange(2)] = random.choice((b"other", b"string", b"\xe9", b"float", b"i"))
    elif way == "size":
        attributes[place][3] = random.choice((-1, 0, 1, 2**30))
    elif way == "table":
        rest = struct.pack("<Q", random.choice((0, 8, 2**40, 2**64 - 1))) + rest[8:]
    else:
        version = struct.pack("<I", 2 | random.choice((0x200, 0x400, 0x800, 0x1000)))
    head = b"".join(
        name + b"\0" + kind + b"\0" + struct.pack("<i", size) + body for name, kind, body, size in attributes
    )
    return data[:4] + version + head + b"\0" + rest


def spoil_arrays(random, arrays):
    """One array of several with another type, shape or values, renamed, doubled under another
    name or removed.
    """
    arrays = dict(arrays)
    name = random.choice(sorted(arrays))
    way = random.choice(
        ("type", "type", "shape", "shape", "values", "values", "rename", "remove", "double", "replace")
    )
    if way == "remove":
        del arrays[name]
    elif way == "rename":
        arrays[random.choice(("arr_0", "Depth", "x", "units", "mask", "direction"))] = arrays.pop(name)
    elif way == "double":
        arrays[random.choice(("arr_1", "normals", "sky", "intrinsics", "conf", "extrinsics"))] = arrays[name]
    else:
        arrays[name] = spoil_array(random, arrays[name], way)
    return arrays


def spoil_array(random, array, way=None):
    """An array of another type or shape, or with values that are no measurements."""
    way = way or random.choice(("type", "shape", "values", "replace"))
    if way == "replace":
        return random.choice(
            (
                np.array("text"), np.array(1.0), np.zeros((0, 3)), np.array([[b"a", b"b"]]),
                np.datetime64("2020-01-01"),
            )
        )
    if array.dtype.kind in "US":
        return np.array(random.choice(("", "Metric", "metres", "larger = nearer", "relative")))
    if way == "type":
        kinds = ("<f2", "<f8", ">f4", "<i4", "u1", "<u2", "?", "<c8", "U8", "<i8", ">i2", "<u8", "<f4")
        with np.errstate(all="ignore"):
            return array.astype(random.choice(kinds))
    if way == "shape":
        shapes = [array.T, array[None], array[..., None], array[None, None], array.ravel(), array[:0]]
        shapes += [array[..., :-1], array[0], array[:, 1:]] if array.ndim > 1 else []
        return random.choice(shapes)
    array = array.astype("<f4").copy()
    array.reshape(-1)[: random.choice((1, array.size))] = random.choice(
        (np.nan, np.inf, -np.inf, -1, 0, 1e30, 1e-30)
    )
    return array


def spoil_npy(random, data):
    """An .npy file: its array, the words of its header, or its bytes."""
    way = random.choice(("array", "array", "header", "bytes"))
    if way == "array":
        return pack_npy(spoil_array(random, np.load(io.BytesIO(data))))
    if way == "header":
        pairs = [(b"'<f4'", b"'|O'  "), (b"'<f4'", b"'<f9'"), (b"False", b"True "), (b"{", b"[")]
        pairs += [(b"(6,", b"(-6,"), (b"(6,", b"(66666666666666,")]
        return data.replace(*random.choice(pairs))
    return spoil_bytes(random, data)


def spoil_npz(random, data):
    """An .npz file: its arrays three times of four, its bytes else."""
    if random.random() < 0.25:
        return spoil_bytes(random, data)
    with np.load(io.BytesIO(data)) as found:
        return pack_npz(
            spoil_arrays(random, {name: found[name] for name in found.files}), packed=random.random() < 0.5
        )


def pack_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pack_npz(arrays, *, packed=False):
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def spoil_safetensors(random, data):
    """A safetensors file: its header's JSON, its metadata, one tensor's type, shape, name or values,
    or its bytes.
    """
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = random.choice([name for name in header if name != "__metadata__"])
    way = random.choice(
        (
            "bytes", "json", "metadata", "metadata", "type", "shape", "rename", "remove", "values", "values",
            "length",
        )
    )
    if way == "bytes":
        return spoil_bytes(random, data)
    if way == "length":
        return struct.pack("<Q", random.choice((0, 1, length - 1, length + 1, 2**40, 2**63))) + data[8:]
    if way == "json":
        header = spoil_value(random, header)
    elif way == "metadata":
        spoil_metadata(random, header)
    elif way == "rename":
        header[random.choice(("other", f"module.{name}", name.upper(), f"_orig_mod.{name}"))] = header.pop(
            name
        )
    elif way == "values":
        start, stop = header[name]["data_offsets"]
        body = (
            body[:start] + random.choice((b"\xff", b"\x7f", b"\x00", b"\x01")) * (stop - start) + body[stop:]
        )
    else:
        header, body = spoil_tensor(random, header, body, name, way)
    text = dump(header)
    return struct.pack("<Q", len(text)) + text + body


def spoil_metadata(random, header):
    """One entry of the metadata, where there are any, in place."""
    found = header.get("__metadata__")
    if found:
        key = random.choice(sorted(found))
        found[key] = random.choice(
            (spoil_text(random, found[key]), spoil_text(random, found[key]), "", "nan", "{}", 3, None)
        )


def spoil_tensor(random, header, body, name, way):
    """One tensor removed, of another type or of another shape;
    three times of four the rest is laid out to fit it.
    """
    shape = header[name]["shape"]
    if way == "remove":
        del header[name]
    elif way == "type":
        header[name]["dtype"] = random.choice(
            ("F64", "I8", "U8", "BOOL", "F8_E4M3", "BF16", "F16", "F32", "I64", "X9")
        )
    else:
        shape = random.choice(
            (shape[::-1], [*shape, 1], [1, *shape], shape[1:], [-1], [0], [2**40, 2**40], [1.5])
        )
        header[name]["shape"] = shape
    if random.random() < 0.75 and all(type(side) is int and 0 <= side < 10**6 for side in shape):
        return relay(header, body)
    return header, body


def spoil_text(random, text):
    """JSON in a metadata entry by its values, any other text by its letters."""
    try:
        return dump(spoil_value(random, json.loads(text))).decode()
    except ValueError:
        return spoil_bytes(random, text.encode()).decode("utf-8", "replace")


# of one value; all others have one
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "X9": 4}


def relay(header, body):
    """The header with offsets that fit its types and shapes, and a body of that length:
    a sound file of other tensors.
    """
    laid, end = {}, 0
    for name, entry in header.items():
        if name != "__metadata__":
            size = int(np.prod(entry["shape"], dtype=np.int64)) * BYTES.get(entry["dtype"], 1)
            laid[name] = {**entry, "data_offsets": [end, end + size]}
            end += size
    about = {"__metadata__": header["__metadata__"]} if header.get("__metadata__") else {}
    return {**about, **laid}, (bytes(body) * (1 + end // max(1, len(body))))[:end]
