"""Training and input of CIFAR's nets, one function a system, and `serve`, which is a process of speed.

Steps are fed with one batch that is ready in memory; the input is a measure of its own.
"""

import time
from collections.abc import Callable

from benchmarks import inference, jpeg_input, several_workers
from benchmarks.trainers import Measures, ready_batches, synthetic_trainer
from official_resnet import resnet_variants
from official_resnet.training import devices


def ours(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """Return {measure: function of a number of steps} of resnet_run_loop's own compiled loop."""
    devices.start_tensorflow()
    import tensorflow as tf

    trainer = synthetic_trainer(resnet_variants.cifar_spec(resnet_size), batch_size, dtype=dtype)
    pipeline, ready = iter(trainer.train_batches()), iter(ready_batches(trainer))
    return {
        'train': lambda steps: trainer.train_steps(ready, tf.constant(steps)).numpy(),
        'forward': _forward(trainer.model, next(ready)[0]),
        'input': lambda steps: [next(pipeline) for _ in range(steps)],
    }


def keras(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """Return the same of the same net in stock Keras layers, with compile and fit, TensorFlow's own threads."""
    import keras

    with devices.hidden_stderr():
        trainer = synthetic_trainer(resnet_variants.cifar_spec(resnet_size), batch_size, dtype=dtype)
    from official_resnet.inference import rewrite

    model = rewrite.to_stock(trainer.model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=['accuracy'])
    ready = ready_batches(trainer)
    return {
        'train': lambda steps: model.fit(ready, steps_per_epoch=steps, epochs=1, verbose=0),
        'forward': _forward(model, next(iter(ready))[0]),
    }


def torch(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """Return the same of PyTorch, channels_last and eager, fed with a batch that is ready in memory."""
    from torch import int64

    from benchmarks import torch_peer
    from official_resnet.inputs import datasets

    examples = datasets.open_split('synthetic', 'train')
    images, labels = next(iter(examples.training_batches(batch_size)))
    images, labels = torch_peer.to_torch(images.numpy()), torch_peer.torch.tensor(labels.numpy(), dtype=int64)
    step = torch_peer.TrainStep(torch_peer.CifarResNet(resnet_size), dtype)
    return {
        'train': lambda steps: [step.train(images, labels) for _ in range(steps)],
        'forward': lambda steps: [step.forward(images) for _ in range(steps)],
    }


def _forward(model, images):
    import tensorflow as tf

    call = tf.function(lambda: model(images, training=False))
    return lambda steps: [call().numpy() for _ in range(steps)]


def serve(system: str, *arguments) -> Callable[[str, int], float]:
    """Build a system; return the function (measure, steps) -> seconds."""
    systems = {'ours': ours, 'keras': keras, 'torch': torch}
    systems |= inference.SYSTEMS | jpeg_input.SYSTEMS | several_workers.SYSTEMS
    measures = systems[system](*arguments)

    def seconds(measure, steps):
        start = time.perf_counter()
        measures[measure](steps)
        return time.perf_counter() - start

    return seconds
