"""MLX's groups of every width, size and type of scale, each with the floats that `mx.dequantize` makes of it."""

import itertools

import mlx.core as mx
import numpy as np

ROWS, COLUMNS = 3, 256
BITS, GROUPS, DTYPES = (2, 3, 4, 5, 6, 8), (32, 64, 128), {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def write(path):
    """Tensors `BITS.GROUP.DTYPE.` weight, scales, biases, and `floats`: what they stand for, worked out in F32."""
    tensors = {}
    for bits, group, (name, dtype) in itertools.product(BITS, GROUPS, DTYPES.items()):
        generator = np.random.Generator(np.random.PCG64(bits * 1000 + group))
        floats = mx.array(generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)).astype(dtype)
        weight, scales, biases = mx.quantize(floats, group_size=group, bits=bits)
        back = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
        parts = {"weight": weight, "scales": scales, "biases": biases, "floats": back}
        tensors.update({f"{bits}.{group}.{name}.{part}": value for part, value in parts.items()})
    mx.save_safetensors(str(path), tensors)
