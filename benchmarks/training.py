"""Training with one function for each system, for benchmarks.speed: ours, Keras, PyTorch, two workers, and checkpoints.

Each takes (dtype, resnet_size, batch_size), where dtype is 'fp32' or 'bf16' and resnet_size may be POOLED, and returns
{measure: function of a number of steps}. `ours`, `keras` and `torch` train CIFAR networks with one batch that is ready
in memory; the input is a separate measure. `one` and `several` read their input from the pipeline, and synchronise
after each call.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any, cast

import tensorflow as tf

from benchmarks.measuring import Child
from official_resnet import resnet_variants
from official_resnet.inference import rewrite
from official_resnet.inputs import datasets
from official_resnet.resnet_run_loop import Trainer
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training import workers
from official_resnet.training.config import MachineConfig, TrainConfig

POOLED = 'resnet8_pooled'  # the network of the recipe fast


def ours(dtype: str, resnet_size: int | str, batch_size: int) -> dict:
    """The compiled loop of resnet_run_loop."""
    trainer = synthetic_trainer(_cifar_spec(resnet_size), batch_size, dtype=dtype)
    pipeline, ready = iter(trainer.train_batches()), ready_batches(trainer)
    return {
        'train': stepping(trainer, ready),
        'forward': _forward(trainer.model, next(iter(ready))[0]),
        'input': lambda steps: [next(pipeline) for _ in range(steps)],
    }


def keras(dtype: str, resnet_size: int | str, batch_size: int) -> dict:
    """The same network in stock Keras layers, with compile, fit, and TensorFlow's default threads."""
    trainer = synthetic_trainer(_cifar_spec(resnet_size), batch_size, dtype=dtype)
    model = rewrite.to_stock(trainer.model)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=['accuracy'])
    ready = ready_batches(trainer)
    return {
        'train': lambda steps: model.fit(ready, steps_per_epoch=steps, epochs=1, verbose=0),
        'forward': _forward(model, next(iter(ready))[0]),
    }


def torch(dtype: str, resnet_size: int | str, batch_size: int) -> dict:
    """PyTorch in eager mode with channels_last, and torch.autocast in bf16: steps of SGD, or inference."""
    import torch

    from benchmarks import torch_peer

    images, labels = next(iter(datasets.open_split('synthetic', 'train').training_batches(batch_size)))
    images, labels = torch_peer.to_torch(images.numpy()), torch.from_numpy(labels.numpy()).long()
    network = torch_peer.pooled_network() if resnet_size == POOLED else torch_peer.CifarResNet(int(resnet_size))
    model = cast(Any, network).to(memory_format=torch.channels_last)  # not in the stubs
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=2e-4)

    def logits(is_training) -> 'torch.Tensor':
        model.train(is_training)
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bf16'):
            return model(images).float()

    def train(steps) -> None:
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(logits(True), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    @torch.inference_mode()
    def forward(steps) -> Any:
        return [logits(False) for _ in range(steps)]

    return {'train': train, 'forward': forward}


def one(dtype: str, resnet_size: int, batch_size: int) -> dict:
    """One process with all cores."""
    return {'workers': join(dtype, resnet_size, batch_size, 'default')}


def several(dtype: str, resnet_size: int, batch_size: int) -> dict:
    """Two workers with half of the cores each: this process, and another one that takes the same steps."""
    cores = sorted(os.sched_getaffinity(0))
    hosts = [f'localhost:{port}' for port in workers.free_ports(2)]
    mine, other = (workers.tf_config(hosts, i) for i in range(2))
    peer = Child('benchmarks.training:join', dtype, resnet_size, batch_size, cores=cores[1::2], TF_CONFIG=other)
    os.sched_setaffinity(0, cores[::2])
    os.environ['TF_CONFIG'] = mine
    run = join(dtype, resnet_size, batch_size)
    peer.answer()

    def steps(count) -> None:
        peer.tell(count)
        run(count)
        peer.answer()

    return {'workers': steps}


def join(dtype: str, resnet_size: int, batch_size: int, strategy: str = 'multi_worker_mirrored') -> Callable:
    """Become a worker of TF_CONFIG, or the only process of another strategy; return the function that takes steps."""
    if strategy == 'multi_worker_mirrored':
        workers.join(None)
    trainer = synthetic_trainer(_spec(resnet_size), batch_size, {'distribution_strategy': strategy}, dtype=dtype)
    train = stepping(trainer, trainer.train_batches())

    def run(count) -> None:
        train(count)
        trainer.process.total(count)

    return run


def save(dtype: str, resnet_size: int, batch_size: int) -> dict:
    """Save a CIFAR (6n+2 layers) or ImageNet network, with its momentum, to the folder of temporary files."""
    trainer = synthetic_trainer(_spec(resnet_size), batch_size, {'model_dir': tempfile.mkdtemp()}, dtype=dtype)
    return {'save': lambda count: [trainer.save() for _ in range(count)]}


def synthetic_trainer(spec: ResNetSpec, batch_size: int, machine: dict | None = None, **config: Any) -> Trainer:
    """Return a trainer on synthetic images; `machine` and `config` are fields of the configurations."""
    dataset = 'synthetic' if resnet_variants.IMAGE_SHAPES[spec.stem][0] == 32 else 'synthetic224'
    config = {'dataset': dataset, 'machine': MachineConfig(**machine or {}), **config}
    return Trainer(TrainConfig(spec, batch_size=batch_size, train_epochs=10**6, **config))  # more than any needs


def ready_batches(trainer: Trainer) -> tf.data.Dataset:
    """Return one training batch over and over, so that no step waits for its input."""
    return tf.data.Dataset.from_tensors(next(iter(trainer.train_batches()))).repeat()


def stepping(trainer: Trainer, batches: tf.data.Dataset) -> Callable[[int], object]:
    """Return the function that takes a number of training steps with the next batches."""
    iterator = iter(batches)
    return lambda steps: trainer.train_steps(iterator, tf.constant(steps)).numpy()


def _forward(model, images):
    call = tf.function(lambda: model(images, training=False))
    return lambda steps: [call().numpy() for _ in range(steps)]


def _cifar_spec(resnet_size):
    return resnet_variants.VARIANTS[POOLED] if resnet_size == POOLED else resnet_variants.cifar_spec(resnet_size)


def _spec(resnet_size):
    is_small = resnet_size % 6 == 2 and resnet_size not in resnet_variants.IMAGENET_BLOCKS
    return resnet_variants.cifar_spec(resnet_size) if is_small else resnet_variants.imagenet_spec(resnet_size)
