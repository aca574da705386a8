"""The pooled networks against the same written in PyTorch, as airbench94 (arXiv:2404.00498) arranges its layers."""

import keras
import numpy as np
import pytest
from fixtures.torch_peers import assert_same_logits, copy_weights

from official_resnet import resnet_model, resnet_spec, resnet_variants
from official_resnet.more_layers import blur
from official_resnet.training import whitening

pytestmark = pytest.mark.parity


@pytest.mark.parametrize('variant', ['resnet8_pooled', 'plain8_pooled'])
def test_same_logits_as_pytorch(variant):
    keras.utils.set_random_seed(0)
    from benchmarks import torch_peer

    model = resnet_variants.build_model(variant, 10)
    peer = torch_peer.pooled_network(is_residual=variant.startswith('resnet')).eval()
    copy_weights(model, peer)
    assert_same_logits(model, peer, (32,))


def test_dirac_kernels_are_those_of_pytorch():
    import torch

    keras.utils.set_random_seed(0)
    kernel = resnet_variants.build_model('resnet8_pooled', 10).get_layer('group2_block1_conv1').kernel.numpy()
    expected = torch.nn.init.dirac_(torch.empty(64, 64, 3, 3)).numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel[..., :64], expected)
    limit = (9 * 64) ** -0.5
    assert abs(kernel[..., 64:]).max() < limit and kernel[..., 64:].std() == pytest.approx(limit / 3**0.5, rel=0.02)


def test_the_whitening_kernel_is_that_of_pytorch():
    import torch

    images = (
        np.random.default_rng(0).normal(size=(20, 8, 8, 3)).cumsum(1).astype('float32')
    )  # rows that depend on each other
    patches = torch.tensor(images.transpose(0, 3, 1, 2)).unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3)
    flat = patches.reshape(-1, 12).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    expected = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2).numpy().transpose(2, 3, 1, 0)
    kernel = whitening.whitening_kernel(images, 2)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    signs = np.sign((kernel[..., :12] * expected).sum((0, 1, 2)))  # of an eigenvector it is free
    np.testing.assert_allclose(kernel[..., :12], expected * signs, rtol=1e-3, atol=1e-4)


def test_blur_pool_is_a_fixed_convolution_of_pytorch():
    import torch

    spec = resnet_variants.imagenet_spec(18, blur_pool='all', filters=16)
    keras.utils.set_random_seed(0)
    model = resnet_model.resnet(spec, 10, (None, None, 3))
    images = np.random.default_rng(0).normal(size=(2, 33, 40, 16)).astype('float32')
    row = torch.tensor([1.0, 2, 1]) / 4
    kernel = torch.outer(row, row).expand(16, 1, 3, 3)
    expected = torch.nn.functional.conv2d(torch.tensor(images.transpose(0, 3, 1, 2)), kernel, None, 2, 1, 1, 16)
    np.testing.assert_allclose(blur(images, 2, 'blur'), expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    conv, blurred = model.get_layer('group2_block1_conv1'), model.get_layer('group2_block1_conv1_blur')
    assert conv.strides == (2, 2) and blurred.strides == (1, 1)  # as composer's BlurConv2d: first the filter
    assert resnet_spec.ResNetSpec.from_json({**vars(spec), 'group_blocks': [2, 2, 2, 2]}) == spec
