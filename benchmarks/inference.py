"""Inference and building of ResNet-50, with one function for each system, for benchmarks.speed.

Each function takes (dtype, resnet_size, batch_size, version), where dtype is 'fp32' or 'bf16', and version '1' or '1.5'
(keras.applications has only '1'), and returns {measure: function of a number of steps}. A step of inference reads
float32 images of 224x224 from memory and leaves the logits in memory. ONNX Runtime and OpenVINO run the network of
`ours`, rewritten; the others run their own.
"""

import os
import tempfile

import numpy as np

from benchmarks import measuring
from official_resnet import resnet_variants
from official_resnet.training import devices

IMAGE_SHAPE = (224, 224, 3)


def ours(dtype: str, resnet_size: int, batch_size: int, version: str = '1') -> dict:
    """Our compile_model, with 16-bit weights in bf16; each op uses all cores, one op at a time."""
    devices.start_tensorflow(1)
    import tensorflow as tf

    from official_resnet.inference import rewrite

    model = _trained_model(resnet_size, version)
    call = rewrite.compile_model(model, IMAGE_SHAPE, 'bfloat16' if dtype == 'bf16' else None)
    images = tf.constant(_images(batch_size))
    return {
        'inference': lambda steps: [call(images).numpy() for _ in range(steps)],
        'build': lambda steps: [resnet_variants.imagenet_resnet(resnet_size, version=version) for _ in range(steps)],
    }


def applications(dtype: str, resnet_size: int, batch_size: int, version: str = '1') -> dict:
    """The compiled call of keras.applications."""
    import tensorflow as tf

    model, images = _application(dtype, resnet_size), tf.constant(_images(batch_size))
    call = tf.function(lambda: model(images, training=False))
    return {
        'inference': lambda steps: [call().numpy() for _ in range(steps)],
        'build': lambda steps: [_application(dtype, resnet_size) for _ in range(steps)],
    }


def predict(dtype: str, resnet_size: int, batch_size: int, version: str = '1') -> dict:
    """`predict` of keras.applications."""
    model, images = _application(dtype, resnet_size), _images(batch_size)
    return {'inference': lambda steps: [model.predict(images, batch_size, verbose=0) for _ in range(steps)]}


def torch(dtype: str, resnet_size: int, batch_size: int, version: str = '1') -> dict:
    """The ResNet of pytorchcv in eager mode, with channels_last, and with autocast in bf16."""
    import torch
    from pytorchcv.models import resnet

    from benchmarks import torch_peer

    name = {'1': f'resnet{resnet_size}', '1.5': f'resnet{resnet_size}b'}[version]
    peer = getattr(resnet, name)().eval().to(memory_format=torch.channels_last)
    images = torch_peer.to_torch(_images(batch_size))

    @torch.inference_mode()
    def infer(steps) -> None:
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bf16'):
            for _ in range(steps):
                peer(images).float().numpy()

    return {'inference': infer}


def onnx(dtype: str, resnet_size: int, batch_size: int, version: str = '1') -> dict:
    """ONNX Runtime, in float32, because its CPU kernels do not have bfloat16."""
    import onnxruntime

    session = _exported(resnet_size, version, onnxruntime.InferenceSession)
    images = {session.get_inputs()[0].name: _images(batch_size)}
    return {'inference': lambda steps: [session.run(None, images) for _ in range(steps)]}


def openvino(dtype: str, resnet_size: int, batch_size: int, version: str = '1') -> dict:
    """OpenVINO, which reads the same ONNX file, with all cores for one batch."""
    import openvino

    precision = {'fp32': 'f32', 'bf16': 'bf16'}[dtype]  # without the hint, it computes in bf16 where the CPU has it
    hints = {'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY'}
    model = _exported(resnet_size, version, openvino.Core().read_model)
    model.reshape([batch_size, *IMAGE_SHAPE])
    request, images = openvino.compile_model(model, 'CPU', hints).create_infer_request(), _images(batch_size)
    return {'inference': lambda steps: [request.infer([images], share_inputs=True)[0] for _ in range(steps)]}


def export(path: str, resnet_size: int, version: str) -> None:
    """Write the rewritten network as an ONNX file, in a process of its own: it takes 8 GB, and does not return them."""
    import keras

    from official_resnet.inference import exporters

    keras.utils.set_random_seed(0)
    exporters.write_onnx(exporters.rewritten(_trained_model(resnet_size, version)), path)


def _exported(resnet_size, version, read):
    """Return what `read` makes of the path of an ONNX file with the rewritten network."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'model.onnx')
        with measuring.Child('benchmarks.inference:export', path, resnet_size, version) as child:
            child.answer()
        return read(path)


def _images(batch_size):
    return np.random.default_rng(0).normal(size=(batch_size, *IMAGE_SHAPE)).astype('float32')


def _application(dtype, resnet_size):
    import keras

    keras.config.set_dtype_policy(devices.POLICIES[dtype])
    return getattr(keras.applications, f'ResNet{resnet_size}')(weights=None)


def _trained_model(resnet_size, version):
    """Return a network whose BN is not the identity, because adding a bias of 0 would be optimised away."""
    model = resnet_variants.imagenet_resnet(resnet_size, version=version)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ('beta', 'moving_mean'):
            variable.assign(random.normal(0, 0.1, variable.shape))
    return model
