"""OpenCV runs a caffemodel and its prototxt, both written here, and our converted network computes the same.

This needs opencv-python-headless below 5, because later versions do not read Caffe's files.
"""

import numpy as np
import pytest
from fixtures.conversion import assert_runs_alike, converted, images_of
from fixtures.foreign_files import caffe_file, caffe_variables, he_blocks

from checkpoints_tools import from_caffe

pytestmark = pytest.mark.parity


def layer(name, kind, bottoms, top, parameters=''):
    inputs = ' '.join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}" {inputs} top: "{top}" {parameters} }}\n'


def conv_norm(name, bottom, outputs, kernel, stride, has_bias=False):
    """Return a convolution, its BatchNorm and its Scale, as in ResNet-50-deploy.prototxt."""
    suffix = '_conv1' if name == 'conv1' else name[3:]
    sizes = f'num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} stride: {stride}'
    convolution = f'convolution_param {{ {sizes} bias_term: {str(has_bias).lower()} }}'
    return (
        layer(name, 'Convolution', [bottom], name, convolution)
        + layer(f'bn{suffix}', 'BatchNorm', [name], name, 'batch_norm_param { use_global_stats: true }')
        + layer(f'scale{suffix}', 'Scale', [name], name, 'scale_param { bias_term: true }')
    )


def prototxt(group_blocks, filters, num_classes, size, has_bias, is_numbered):
    """Return the deploy.prototxt of one of He's networks, without the softmax."""
    text = (
        f'name: "ResNet" input: "data" input_dim: 2 input_dim: 3 input_dim: {size} input_dim: {size}\n'
        + conv_norm('conv1', 'data', filters, 7, 2, has_bias)
        + layer('conv1_relu', 'ReLU', ['conv1'], 'conv1')
        + layer('pool1', 'Pooling', ['conv1'], 'pool1', 'pooling_param { kernel_size: 3 stride: 2 pool: MAX }')
    )
    bottom = 'pool1'
    for group, block in he_blocks(group_blocks, is_numbered):
        name, inner = f'res{block}', filters * 2 ** (group - 2)
        stride, shortcut = 1, bottom
        if block.endswith('a'):
            stride, shortcut = 2 if group > 2 else 1, f'{name}_branch1'
            text += conv_norm(shortcut, bottom, 4 * inner, 1, stride)
        for branch, outputs, kernel in (('2a', inner, 1), ('2b', inner, 3), ('2c', 4 * inner, 1)):
            conv = f'{name}_branch{branch}'
            text += conv_norm(conv, bottom, outputs, kernel, stride)
            text += layer(f'{conv}_relu', 'ReLU', [conv], conv) if branch != '2c' else ''
            bottom, stride = conv, 1
        text += layer(name, 'Eltwise', [shortcut, bottom], name) + layer(f'{name}_relu', 'ReLU', [name], name)
        bottom = name
    text += layer('pool5', 'Pooling', [bottom], 'pool5', 'pooling_param { global_pooling: true pool: AVE }')
    classes = f'inner_product_param {{ num_output: {num_classes} }}'
    return text + layer('fc1000', 'InnerProduct', ['pool5'], 'fc1000', classes)


@pytest.mark.parametrize(
    'blocks,filters,num_classes,has_bias,is_numbered',
    [((3, 4, 6, 3), 64, 1000, True, False), ((3, 4, 23, 3), 16, 10, False, True)],
    ids=['ResNet-50', 'ResNet-101'],
)
def test_same_logits_as_opencv(tmp_path, blocks, filters, num_classes, has_bias, is_numbered):
    import cv2

    path = tmp_path / 'net.caffemodel'
    path.write_bytes(caffe_file(caffe_variables(blocks, filters, num_classes, has_bias, is_numbered)))
    source, variables, model = converted(from_caffe, path)
    assert source.variant == f'ResNet-{2 + 3 * sum(blocks)}'
    # 224: the published size; 64, 75, 70: the pool sees 32, 38 and 35 pixels, and its last window is cut off or not.
    for size in (64, 75, 70, 224):
        (tmp_path / 'deploy.prototxt').write_text(prototxt(blocks, filters, num_classes, size, has_bias, is_numbered))
        peer = cv2.dnn.readNetFromCaffe(str(tmp_path / 'deploy.prototxt'), str(path))
        peer.setInput(np.ascontiguousarray(images_of(size).transpose(0, 3, 1, 2)))  # NHWC -> NCHW
        expected = peer.forward().reshape(2, num_classes)
        assert_runs_alike(from_caffe, source, variables, model, (size,), lambda _, expected=expected: expected)
