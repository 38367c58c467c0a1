"""Files that no torch.save wrote: pickles put together by hand, in both of PyTorch's formats, and broken archives.

Each is one way to make a careless reader crash, take all memory or never end. They are the corpus of the tests.
"""

import io
import pathlib
import struct
import sys
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from common import fresh

MARK, STOP = b"(", b"."
DATA = bytes(range(64))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def tuple_of(*items: bytes) -> bytes:
    return MARK + b"".join(items) + b"t"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def dict_of(*items: bytes) -> bytes:
    return b"}" + MARK + b"".join(items) + b"u"


def storage(key: str = "0", count: int = 16, kind: str = "FloatStorage") -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(size=(4, 4), strides=(4, 1), offset: int = 0, over: bytes | None = None) -> bytes:
    numbers = [tuple_of(*(integer(n) for n in values)) for values in (size, strides)]
    arguments = tuple_of(over or storage(), integer(offset), *numbers, b"\x89", b"N")
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def laughs() -> bytes:
    """Dicts, each of which holds the one before it twice."""
    inner = b"}" + MARK + text("w") + tensor() + b"u" + b"q\x01"
    for _ in range(25):
        # What is on top goes into both entries of a new dict.
        inner += b"0}" + MARK + text("a") + b"h\x01" + text("b") + b"h\x01" + b"u" + b"q\x01"
    return inner


PROGRAMS = {
    "holds-itself": b"}q\x00" + MARK + text("w") + tensor() + text("again") + b"h\x00" + b"u",
    "doubles": laughs(),
    "deep": b"}" + MARK + text("w") + b"".join(b"}" + MARK + text("w") for _ in range(200)) + tensor() + b"u" * 201,
    "long-text": b"X\xff\xff\xff\xff",
    "long-bytes": b"\x8e" + b"\xff" * 8,
    "long-integer": b"\x8b\xff\xff\xff\xff",
    "unknown-memo": b"N" + b"r\xff\xff\xff\xff" + b"j\xfe\xff\xff\xff",
    "marks": MARK * 5000,
    "below-mark": b"N" + MARK + b"0",
    "empty-stack": b"R",
    "odd-items": b"}" + MARK + b"N" + b"u",
    "append-to-none": b"NNa",
    "instance": MARK + b"ios\nsystem\n",
    "extension": b"\x82\x01",
    "protocol-9": b"\x80\x09",
    "calls-text": text("print") + b")R",
    "calls-nothing": name("torch._utils", "_rebuild_tensor_v2") + b")R",
    "builds-text": text("object") + b"}b",
    "system": name("os", "system") + text("true") + b"\x85R",
    "stacked-name": text("posix") + text("system") + b"\x93",
    "foreign-storage": tuple_of(text("module"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(1)) + b"Q",
    "absent-storage": dict_of(text("w"), tensor(over=storage("7"))),
    "negative-size": dict_of(text("w"), tensor((-4, 4))),
    "huge-size": dict_of(text("w"), tensor((2**62, 2**62))),
    "huge-stride": dict_of(text("w"), tensor((4, 4), (2**62, 2**62))),
    "huge-offset": dict_of(text("w"), tensor(offset=2**62)),
    "repeats": dict_of(text("w"), tensor((2**20, 2**20), (0, 0))),
    "too-long": dict_of(text("w"), tensor((4, 5), (5, 1))),
    "past-the-end": dict_of(text("w"), tensor(offset=1)),
    "short-storage": dict_of(text("w"), tensor((1000,), (1,), over=storage(count=1000))),
    "strides-missing": dict_of(text("w"), tensor((4, 4), (1,))),
    "many-axes": dict_of(text("w"), tensor((1,) * 100, (1,) * 100)),
    "same-key": dict_of(text("a.b"), tensor(), text("a"), dict_of(text("b"), tensor())),
    "strange-key": dict_of(b"N", tensor()),
    "complex": dict_of(text("w"), tensor(over=storage(kind="ComplexFloatStorage"))),
    "two-values": b"NN",
}


def archive(files: dict[str, bytes], folder: str = "archive") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for file, content in files.items():
            z.writestr(zipfile.ZipInfo(f"{folder}/{file}"), content)
    return out.getvalue()


def legacy(program: bytes) -> bytes:
    head = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + STOP
    head += b"\x80\x02" + integer(1001) + STOP + b"\x80\x02" + dict_of(text("little_endian"), b"\x88") + STOP
    return head + program + STOP + b"\x80\x02]" + MARK + text("0") + b"e" + STOP + struct.pack("<q", 16) + DATA


def archives() -> dict[str, bytes]:
    pickle = b"\x80\x02" + dict_of(text("w"), tensor()) + STOP
    whole = archive({"data.pkl": pickle, "data/0": DATA})
    end = whole.rindex(b"PK\x05\x06")
    first = whole.index(b"PK\x01\x02")

    def changed(at: int, value: bytes) -> bytes:
        return whole[:at] + value + whole[at + len(value) :]

    return {
        "no-pickle": archive({"version": b"3"}),
        "no-folder": archive({}, ""),
        "big-endian": archive({"byteorder": b"big", "data.pkl": pickle, "data/0": DATA}),
        "cut-directory": whole[: end - 10],
        "no-directory": whole[:first],
        "many-entries": changed(end + 8, b"\xfe\xff\xfe\xff"),
        "far-directory": changed(end + 16, b"\xf0\xff\xff\xff"),
        "large-directory": changed(end + 12, b"\xf0\xff\xff\xff"),
        "far-entry": changed(first + 42, b"\xf0\xff\xff\xff"),
        "large-entry": changed(first + 20, b"\xf0\xff\xff\xff\xf0\xff\xff\xff"),
    }


def main() -> None:
    folder = fresh("checkpoint", "malformed")
    good = archive({"data.pkl": b"\x80\x02" + dict_of(text("w"), tensor()) + STOP, "data/0": DATA})
    (folder / "good.pth").write_bytes(good)
    (folder / "good.legacy.pth").write_bytes(legacy(b"\x80\x02" + dict_of(text("w"), tensor())))
    # What the older format once had: a storage that is a part of another, here elements 4 to 12 of 16.
    part = tuple_of(text("1"), integer(4), integer(8))
    view = tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(16), part) + b"Q"
    (folder / "view.legacy.pth").write_bytes(legacy(b"\x80\x02" + dict_of(text("w"), tensor((2, 3), (3, 1), 2, view))))
    past = dict_of(text("w"), tensor((2, 3), (3, 1), 3, view))
    (folder / "past-the-view.legacy.pth").write_bytes(legacy(b"\x80\x02" + past))
    for stem, program in PROGRAMS.items():
        program = b"\x80\x02" + program
        (folder / f"{stem}.pth").write_bytes(archive({"data.pkl": program + STOP, "data/0": DATA}))
        (folder / f"{stem}.legacy.pth").write_bytes(legacy(program))
    for stem, content in archives().items():
        (folder / f"zip-{stem}.pth").write_bytes(content)


if __name__ == "__main__":
    main()
