"""Makes `ggml_blocks.json`: what ggml makes of its quantised blocks, for the tests of `tensor::Encoding`.

    python make_ggml_blocks.py LIBGGML_BASE

LIBGGML_BASE is the `libggml-base.so` of a build of llama.cpp (or of the package llama-cpp-python). The `gguf` package decodes
and, for blocks of 32, encodes; it has no encoders for blocks of 256, so for those the library tells the error of its own.

decode.NAME.{bytes, values}  two blocks of random bits with sane scales, and their values
encode.input                 1,024 values: normal, with outliers, a run of zeros, a constant run, tiny ones
encode.bytes.NAME            its first 256 encoded, for blocks of 32
encode.rms.NAME              root mean square of ggml's error over all of the input, for every encoding
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

HERE = Path(__file__).parent
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
SIZES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def blocks(rng, name):
    data = rng.integers(0, 256, (2, SIZES[name]), dtype=np.uint8)
    for at in SCALES[name]:
        scale = (rng.normal(size=2) * 0.03).astype("<f2")
        data[:, at : at + 2] = scale.view(np.uint8).reshape(2, 2)
    return data


def values(rng):
    x = rng.normal(size=1024).astype("<f4") * np.float32(0.05)
    x[::97] *= 6
    x[64:96] = 0
    x[128:160] = 0.25
    x[768:] *= 1e-3
    return x


def ggml_error(library, name, x):
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    kind = Type[name]
    block, size = {"32": (32, SIZES[name]), "K": (256, SIZES[name])}["K" if name.endswith("K") else "32"]
    out = np.zeros(len(x) // block * size, dtype=np.uint8)
    written = library.ggml_quantize_chunk(kind.value, x.ctypes.data, out.ctypes.data, 0, 1, len(x), None)
    assert written == len(out), (name, written)
    back = quants.dequantize(out.reshape(1, -1), kind).reshape(-1)
    return float(np.sqrt(np.mean((back.astype(np.float64) - x) ** 2)))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rng = np.random.default_rng(20261125)
    library = ctypes.CDLL(sys.argv[1])
    decode = {}
    for name in SIZES:
        data = blocks(rng, name)
        out = quants.dequantize(data, Type[name]).astype("<f4")
        decode[name] = {"bytes": data.tobytes().hex(), "values": out.tobytes().hex()}
    x = values(rng)
    small = [name for name in SIZES if not name.endswith("K")]
    encode = {
        "input": x.tobytes().hex(),
        "bytes": {name: quants.quantize(x[:256].reshape(1, -1), Type[name]).tobytes().hex() for name in small},
        "rms": {name: ggml_error(library, name, x) for name in SIZES},
    }
    (HERE / "ggml_blocks.json").write_text(json.dumps({"decode": decode, "encode": encode}, indent=0) + "\n")


if __name__ == "__main__":
    main()
