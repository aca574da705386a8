"""Several devices that train together, each on its part of a batch: the mirrored strategy, and batch normalisation.

A run on the CPU alone does not import this module.
"""

import collections
import contextlib
import functools
import itertools
from collections.abc import Iterator

import keras
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.layers import BatchNormalization
from official_resnet.training.config import MachineConfig

_GROUP_KEYS = itertools.count(1)


@functools.lru_cache
def mirror(devices: tuple[tf.config.LogicalDevice, ...], all_reduce_alg: str | None) -> tf.distribute.Strategy:
    """Return the only MirroredStrategy of these devices.

    TensorFlow knows an exchange between devices by two numbers, of their group and of the exchange. Each strategy
    counts both from the same start, and a number that another strategy has used for tensors of other shapes, or for
    more devices, is an error. So each group gets a number of its own, and has one strategy.
    """
    ops = {'nccl': tf.distribute.NcclAllReduce, 'ring': tf.distribute.HierarchicalCopyAllReduce}
    own = {'_collective_key_base': next(_GROUP_KEYS)}
    kind = type('MirroredStrategy', (tf.distribute.MirroredStrategy,), own)
    return kind([device.name for device in devices], ops[all_reduce_alg]() if all_reduce_alg else None)


def choose_strategy(machine: MachineConfig, batch_size: int, gpus: list) -> tf.distribute.Strategy:
    """Return the tf.distribute.Strategy of a MachineConfig for one process that has these logical GPUs.

    Raises:
        UserError: There are fewer GPUs than requested, or the batch size is not a multiple of their number.
    """
    asked, kind = machine.num_gpus, machine.distribution_strategy
    count = min(len(gpus), 1) if asked is None else len(gpus) if asked == -1 else asked
    if count > len(gpus):
        raise UserError(
            f'--num_gpus={count}, but TensorFlow finds {len(gpus)}; lower --num_gpus, or pip install '
            "'tensorflow[and-cuda]' and check the driver with nvidia-smi"
        )
    if kind == 'off' and count > 1:
        raise UserError(f"--num_gpus={count} needs --distribution_strategy=mirrored, not 'off'")
    if kind == 'mirrored' or (kind == 'default' and count > 1):
        devices = gpus[:count] or tf.config.list_logical_devices('CPU')
        strategy = mirror(tuple(devices), machine.all_reduce_alg)
    elif kind == 'off':
        strategy = tf.distribute.get_strategy()
    else:
        strategy = tf.distribute.OneDeviceStrategy('GPU:0' if count else 'CPU:0')
    require_even(batch_size, strategy.num_replicas_in_sync)
    return strategy


def require_even(batch_size: int, replicas: int) -> None:
    """Raise UserError if the batch size is not a multiple of the number of devices."""
    if batch_size % replicas:
        remedy = f'pass --batch_size={max(batch_size // replicas, 1) * replicas}'
        raise UserError(f'--batch_size={batch_size} is not a multiple of {replicas} devices; {remedy}')


class ReplicaStatistics:
    """Batch statistics that the batch norms of a model compute on each replica in a training step.

    A batch norm with this object reports its batch statistics instead of updating its moving statistics. At the end of
    the step the reports of all replicas are averaged in one exchange, so every replica makes the same update. With
    is_synchronized, batch norms also normalise by the statistics of all replicas, whose batches have the same size.
    """

    def __init__(self, is_synchronized: bool):
        self.is_synchronized = is_synchronized
        self._reports: dict[int, list] = collections.defaultdict(list)  # replica id -> reports

    @contextlib.contextmanager
    def handed_to(self, model: keras.Model) -> Iterator[None]:
        """Give this object to the batch norms of a model while the block traces a step for all replicas."""
        norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
        for norm in norms:
            norm.replicas = self
        try:
            yield
        finally:
            self._reports.clear()
            for norm in norms:
                norm.replicas = None

    def normalize(self, norm: BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
        """Return inputs [n, h, w, c] normalised by the statistics of all replicas, and report those statistics."""
        values = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(values, [0, 1, 2], keepdims=True)
        # The total variance is the mean of the replicas' variances plus the variance of their means. This subtracts
        # large numbers only for the second term.
        mean, variance, square = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.MEAN, [mean, variance, tf.square(mean)]
        )
        variance += tf.maximum(square - tf.square(mean), 0)
        scale = tf.math.rsqrt(variance + norm.epsilon)
        if norm.scale:
            scale *= tf.convert_to_tensor(norm.gamma)
        outputs = (values - mean) * scale
        if norm.center:
            outputs += tf.convert_to_tensor(norm.beta)
        self.report(norm.moving_mean, tf.reshape(mean, [-1]), norm.momentum)
        self.report(norm.moving_variance, tf.reshape(variance, [-1]), norm.momentum)
        return tf.cast(outputs, inputs.dtype)

    def report(self, moving: keras.Variable, batch: tf.Tensor, momentum: float) -> None:
        """Report a moving statistic, its value for this replica's batch, and its momentum."""
        self._reports[_replica_id()].append((moving, batch, momentum))

    def update_moving(self) -> None:
        """Update the moving statistics on every replica with the mean of the reports."""
        reports = self._reports.pop(_replica_id(), [])
        if not reports:  # every batch norm is frozen
            return
        batches = [batch for _, batch, _ in reports]
        mean = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, tf.concat(batches, 0))
        parts = tf.split(mean, [batch.shape[0] for batch in batches])
        for (moving, _, momentum), batch in zip(reports, parts, strict=True):
            moving.assign(tf.convert_to_tensor(moving) * momentum + batch * (1 - momentum))


def _replica_id():
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))
