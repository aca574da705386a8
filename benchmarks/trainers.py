"""What is measured of a training: trainers of synthetic images, and batches that no step waits for."""

NUM_EPOCHS = 10**6  # more than any benchmark takes


def synthetic_trainer(spec, batch_size, machine=None, **config):
    """Return the resnet_run_loop.Trainer of a ResNetSpec; `machine` and `config` are fields of the configurations."""
    from official_resnet import resnet_run_loop
    from official_resnet.training.config import MachineConfig, TrainConfig

    dataset = 'synthetic' if spec.stem == 'cifar' else 'synthetic224'
    config = {'dataset': dataset, 'train_epochs': NUM_EPOCHS, 'machine': MachineConfig(**machine or {}), **config}
    return resnet_run_loop.Trainer(TrainConfig(spec, batch_size=batch_size, **config))


def ready_batches(trainer):
    """Return a tf.data.Dataset of one batch over and over: no step waits for its input."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(next(iter(trainer.train_batches()))).repeat()
