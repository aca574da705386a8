"""What the tests of all families need: a checkpoint or its shapes through everything that a conversion does."""

import math
import resource
import time

import numpy as np

from checkpoints_tools import convert
from official_resnet import resnet_model
from official_resnet.errors import UserError


def fitted(module, shapes, variant=None):
    """Return (Source, Entries) of shapes that fit; UserError of others."""
    return convert.fit(module, shapes, 'the checkpoint', variant)


def our_model(module, variables, shapes=None, source=None):
    """Return (our model with the weights of {name: array}, Source); a source of one's own may compute otherwise."""
    shapes = shapes or {name: (np.shape(value), str(np.asarray(value).dtype)) for name, value in variables.items()}
    found, entries = fitted(module, shapes)
    source = source or found
    model = resnet_model.resnet(source.spec, source.num_classes, (None, None, 3))
    convert.assign(model, entries, variables, 'the checkpoint')
    return model, source


def converted(module, path):
    """Return (Source, variables, our model with the file's weights); what is read is what was listed, in float32."""
    shapes, variables = module.shapes(path), dict(module.read(path))
    assert module.recognises(shapes)
    assert {name: (value.shape, value.dtype.name) for name, value in variables.items()} == {
        name: (shape, 'float32') for name, (shape, _) in shapes.items() if name not in module.ignored(shapes)
    }
    model, source = our_model(module, variables, shapes)
    return source, variables, model


def images_of(size):
    return np.random.default_rng(size).normal(0, 1, (2, size, size, 3)).astype('float32')


def assert_equal(got, expected):
    """Within 1e-4 of the largest logit."""
    assert got.shape == expected.shape and np.isfinite(expected).all() and expected.std() > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def assert_runs_alike(module, source, variables, model, sizes=(64, 75)):
    for size in sizes:
        assert_equal(model(images_of(size)).numpy(), module.run(variables, images_of(size), source))


def open_all(module, path):
    """All that a converter does before it builds a model."""
    shapes = module.shapes(path)
    if not module.recognises(shapes):
        raise UserError('not of this family')
    source, _ = fitted(module, shapes)
    # No net is larger than its file.
    assert source.spec.filters * source.num_classes <= sum(math.prod(shape) for shape, _ in shapes.values())
    return dict(module.read(path))


def fuzz(module, data, path, count=90):
    """Truncate and flip bits: UserError or a net, in less than 10 s, with less than 200 MB."""
    random, refused = np.random.default_rng(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        damaged = bytearray(data)
        if i % 3 == 0:
            del damaged[random.integers(len(data)) :]
        else:  # one bit anywhere, or one of the first kilobyte, where sizes are
            place = random.integers(min(1024, len(data)) if i % 3 == 1 else len(data))
            damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        start = time.monotonic()
        try:
            open_all(module, path)
        except UserError as error:
            refused += 1
            assert '\n' not in str(error)
        assert time.monotonic() - start < 10
    assert refused >= count // 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
