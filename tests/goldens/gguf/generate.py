"""GGUF files as the `gguf` package writes them, and what the package's own dequantisation makes of their blocks.

blocks.gguf holds random blocks of every type that is read, beside plain floats and integers; other.gguf has another alignment, all
kinds of metadata and a tensor that was reshaped as ComfyUI's converter does. NAME.values.safetensors holds the same tensors as values.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import gguf
import numpy
from common import ROOT
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

SEED = 22000
FOLDER = ROOT / "gguf"

# Where the scales in half precision lie in a block.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}


def blocks(rng, kind: Type, rows: int, count: int) -> numpy.ndarray:
    """Random blocks, [rows, bytes]; scales are finite, so that values can be compared."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, count, size), dtype=numpy.uint8)
    for place in SCALES[kind]:
        scale = rng.normal(0, 0.02, (rows, count, 1)).astype("<f2")
        data[..., place : place + 2] = scale.view(numpy.uint8)
    return data.reshape(rows, count * size)


def finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    rng = numpy.random.default_rng(SEED)
    values = {}
    writer = gguf.GGUFWriter(FOLDER / "blocks.gguf", "sdxl")
    for kind in SCALES:
        data = blocks(rng, kind, 3, 2)
        name = f"{kind.name.lower()}.weight"
        writer.add_tensor(name, data, raw_dtype=kind)
        values[name] = gguf.quants.dequantize(data, kind)
    floats = rng.normal(0, 1, (2, 3, 4)).astype(numpy.float32)
    for kind in (numpy.float32, numpy.float16, numpy.float64):
        writer.add_tensor(numpy.dtype(kind).name, floats.astype(kind))
        values[numpy.dtype(kind).name] = floats.astype(kind).astype(numpy.float32)
    bf16 = gguf.quants.quantize(floats, Type.BF16)
    writer.add_tensor("bfloat16", bf16, raw_dtype=Type.BF16)
    values["bfloat16"] = gguf.quants.dequantize(bf16, Type.BF16)
    for kind in (numpy.int8, numpy.int16, numpy.int32, numpy.int64):
        writer.add_tensor(numpy.dtype(kind).name, numpy.arange(5, dtype=kind))
        values[numpy.dtype(kind).name] = numpy.arange(5, dtype=numpy.float32)
    finish(writer)
    save_file(values, FOLDER / "blocks.values.safetensors")

    writer = gguf.GGUFWriter(FOLDER / "other.gguf", "sdxl")
    writer.add_custom_alignment(64)
    writer.add_uint8("k.u8", 200)
    writer.add_int8("k.i8", -3)
    writer.add_uint16("k.u16", 60000)
    writer.add_int16("k.i16", -300)
    writer.add_uint32("k.u32", 4000000000)
    writer.add_int32("k.i32", -70000)
    writer.add_float32("k.f32", 0.5)
    writer.add_bool("k.bool", True)
    writer.add_string("k.string", "näme")
    writer.add_uint64("k.u64", 2**40)
    writer.add_int64("k.i64", -(2**40))
    writer.add_float64("k.f64", 0.25)
    writer.add_array("k.numbers", [1, -2, 3])
    writer.add_array("k.texts", [f"t{i}" for i in range(40)])
    writer.add_array("k.floats", [0.5] * 40)
    filters = rng.normal(0, 1, (8, 4, 3, 3)).astype(numpy.float32)
    writer.add_array("comfy.gguf.orig_shape.filters.weight", list(filters.shape))
    data = gguf.quants.quantize(filters.reshape(-1, 32), Type.Q8_0)
    writer.add_tensor("filters.weight", data, raw_dtype=Type.Q8_0)
    writer.add_tensor("bias", filters[0, 0, 0])
    finish(writer)
    whole = gguf.quants.dequantize(data, Type.Q8_0).reshape(filters.shape)
    save_file({"filters.weight": whole, "bias": filters[0, 0, 0]}, FOLDER / "other.values.safetensors")


if __name__ == "__main__":
    main()
