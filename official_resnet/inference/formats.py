"""The files that export_main writes: their names, precisions and packages, and which combinations are refused.

Imports no TensorFlow, because mistakes are reported before it starts.
"""

import dataclasses
import importlib.metadata
import importlib.util

from official_resnet.errors import UserError

INSTALL = "pip install -e '.[export]' in the folder of the repository"
INT8_NEEDS = 8  # least number of calibration images


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file, and the runtime that reads it.

    Attributes:
        runtime: What the user knows it as.
        suffix: How the file's name ends; '' for a folder.
        packages: {module: distribution} that writing and reading it need beyond this package.
        dtypes: The precisions it can have.
        why: {precision that it cannot have: reason and remedy}.
        is_graph: Whether the file can have preprocessing and a fixed batch size. Others hold only layers or weights.
        library, tags: What the Hugging Face hub calls the format, in the header of a model card.
    """

    runtime: str
    suffix: str
    packages: dict[str, str]
    dtypes: tuple[str, ...]
    why: dict[str, str]
    is_graph: bool
    library: str
    tags: tuple[str, ...]


_ONNX = {'tf2onnx': 'tf2onnx', 'onnx': 'onnx', 'onnxruntime': 'onnxruntime'}
_NO_INT8 = 'is written by --to=onnx, litert and openvino'
_NO_BF16 = 'is written by --to=savedmodel and keras'
FORMATS = {
    'savedmodel': Format(
        'TensorFlow',
        '',
        {},
        ('float32', 'float16', 'bfloat16'),
        {'int8': _NO_INT8},
        True,
        'tensorflow',
        ('tensorflow',),
    ),
    'onnx': Format(
        'ONNX Runtime',
        '.onnx',
        _ONNX,
        ('float32', 'float16', 'int8'),
        {'bfloat16': f'has no CPU kernels in ONNX Runtime; it {_NO_BF16}'},
        True,
        'onnx',
        ('onnx',),
    ),
    'litert': Format(
        'LiteRT',
        '.tflite',
        {'ai_edge_litert': 'ai-edge-litert'},
        ('float32', 'float16', 'int8'),
        {'bfloat16': f'is not a precision of LiteRT files; it {_NO_BF16}'},
        True,
        'litert',
        ('tflite', 'litert'),
    ),
    'openvino': Format(
        'OpenVINO',
        '.xml',
        {**_ONNX, 'openvino': 'openvino'},
        ('float32', 'float16', 'int8'),
        {'bfloat16': "needs no file of its own: pass INFERENCE_PRECISION_HINT='bf16' to compile_model"},
        True,
        'openvino',
        ('openvino',),
    ),
    'torch': Format(
        'PyTorch',
        '.safetensors',
        {'safetensors': 'safetensors'},
        ('float32',),
        {'float16': 'is what .half() makes in PyTorch', 'bfloat16': 'is what .bfloat16() makes in PyTorch'}
        | {'int8': _NO_INT8},
        False,
        'pytorch',
        ('pytorch', 'safetensors'),
    ),
    'keras': Format(
        'Keras', '.keras', {}, ('float32', 'float16', 'bfloat16'), {'int8': _NO_INT8}, False, 'keras', ('keras',)
    ),
}
DTYPES = ('float32', 'float16', 'bfloat16', 'int8')


def require(to: str, dtype: str, preprocessing: bool, batch_size: int | None, has_calibration: bool) -> None:
    """Raise UserError if a format cannot have what the flags ask for."""
    row = FORMATS[to]
    if dtype not in row.dtypes:
        others = ', '.join(row.dtypes)
        raise UserError(f'--dtype={dtype} is not for --to={to}: {dtype} {row.why[dtype]}; or pass one of {others}')
    if not row.is_graph:
        for flag, value in (('preprocessing', preprocessing), ('batch_size', batch_size)):
            if value:
                rest = 'leave it out, or pass --to=savedmodel, onnx, litert or openvino'
                raise UserError(f'--{flag} is not for --to={to}, which holds the network alone; {rest}')
    if dtype == 'int8' and not has_calibration:
        raise UserError('--dtype=int8 needs --calibration_images, a folder of images like those it will see')
    if has_calibration and dtype != 'int8':
        raise UserError('--calibration_images is for --dtype=int8; leave it out, or pass --images to compare on')


def require_packages(to: str) -> None:
    """Raise UserError if a package is missing that is needed to write a format or to compare it."""
    packages = FORMATS[to].packages
    if missing := [name for module, name in packages.items() if not importlib.util.find_spec(module)]:
        raise UserError(f'--to={to} needs {", ".join(missing)} (not installed here); {INSTALL}')


def versions(to: str) -> dict[str, str]:
    """Return {distribution: version} of what wrote and read a file."""
    names = ['official-resnet', 'tensorflow', 'keras', 'numpy', *FORMATS[to].packages.values()]
    return {name: importlib.metadata.version(name) for name in names}
