"""What this machine can do: TensorFlow started quietly, threads, precision, tf.distribute strategies."""

import contextlib
import functools
import os
import platform
import sys
import tempfile

from official_resnet.errors import UserError
from official_resnet.training import workers


def start_tensorflow(inter_op_threads=0, intra_op_threads=0):
    """Import TensorFlow without its start-up lines, check it, and set its threads.

    Args:
        inter_op_threads: ops side by side; 0 is TensorFlow's choice, the fastest in training; 1 is in inference.
        intra_op_threads: threads of one op; 0 is all cores. Sums depend on it in their last bits.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    with hidden_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs, and says what it misses
    tf.config.threading.set_inter_op_parallelism_threads(inter_op_threads)
    tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)


def has_gpu():
    """Return whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices('GPU'))


def best_dtype():
    """Return 'bf16' where the GPU or CPU computes in bfloat16 itself, else 'fp32'."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get('compute_capability', (0, 0))
        return 'bf16' if capability >= (8, 0) else 'fp32'  # Ampere
    return 'bf16' if {'amx_bf16', 'avx512_bf16', 'bf16'} & _cpu_flags() else 'fp32'


def make_strategy(num_gpus, distribution_strategy, batch_size, all_reduce_alg=None):
    """Return the tf.distribute.Strategy of these flags.

    Args:
        num_gpus: None takes one if there is one, -1 all.
        distribution_strategy: 'off', 'default' (by num_gpus), 'one_device', 'mirrored', or 'multi_worker_mirrored', for
            which this must be the first thing that is asked of TensorFlow (workers.configure comes before).
        batch_size: images a step, over all devices.
        all_reduce_alg: 'ring' or 'nccl'; None is TensorFlow's choice.

    Raises:
        UserError: more GPUs asked for than are there, or a batch that does not divide by them.
    """
    import tensorflow as tf

    if distribution_strategy == 'multi_worker_mirrored':
        strategy = _multi_worker(all_reduce_alg)
        _require_even(batch_size, strategy.num_replicas_in_sync)
        return strategy
    gpus = tf.config.list_logical_devices('GPU')
    count = min(len(gpus), 1) if num_gpus is None else len(gpus) if num_gpus == -1 else num_gpus
    if count > len(gpus):
        raise UserError(
            f'num_gpus={count}, but TensorFlow sees {len(gpus)}; lower --num_gpus, or pip install '
            "'tensorflow[and-cuda]' and check the driver with nvidia-smi"
        )
    if distribution_strategy == 'off' and count > 1:
        raise UserError(f"num_gpus={count} needs --distribution_strategy=mirrored, not 'off'")
    if distribution_strategy == 'mirrored' or (distribution_strategy == 'default' and count > 1):
        devices = gpus[:count] or tf.config.list_logical_devices('CPU')
        strategy = _mirrored(tuple(device.name for device in devices), all_reduce_alg)
    elif distribution_strategy == 'off':
        strategy = tf.distribute.get_strategy()
    else:
        strategy = tf.distribute.OneDeviceStrategy('GPU:0' if count else 'CPU:0')
    _require_even(batch_size, strategy.num_replicas_in_sync)
    return strategy


def _require_even(batch_size, replicas):
    if batch_size % replicas:
        nearest = max(batch_size // replicas, 1) * replicas
        raise UserError(f'batch_size={batch_size} does not divide by {replicas} devices; try --batch_size={nearest}')


@functools.lru_cache
def _mirrored(devices, all_reduce_alg):
    """Return the one MirroredStrategy of these devices: a second would number its collective ops from the start."""
    import tensorflow as tf

    ops = {'nccl': tf.distribute.NcclAllReduce, 'ring': tf.distribute.HierarchicalCopyAllReduce}
    return tf.distribute.MirroredStrategy(devices, ops[all_reduce_alg]() if all_reduce_alg else None)


@functools.lru_cache
def _multi_worker(all_reduce_alg):
    """Return the one strategy of the workers of TF_CONFIG."""
    import tensorflow as tf

    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation={'ring': implementation.RING, 'nccl': implementation.NCCL, None: implementation.AUTO}[
            all_reduce_alg
        ]
    )
    workers.meet()
    with workers.watched(), hidden_stderr():
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        except (tf.errors.OpError, RuntimeError) as error:  # one came, and ended before it began
            fault = str(error).splitlines()[0][:200]
    raise UserError(f'the workers cannot join: {fault}; start all workers again')


def machine_info():
    """Return a dict of the CPU, memory, GPUs and versions, for logs."""
    import keras
    import tensorflow as tf

    gpus = [
        tf.config.experimental.get_device_details(gpu).get('device_name', gpu.name)
        for gpu in tf.config.list_physical_devices('GPU')
    ]
    return {
        'cpu': {'model': cpu_model(), 'num_cores': os.cpu_count()},
        'gpu': {'count': len(gpus), 'models': gpus},
        'memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
        'python': platform.python_version(),
        'tensorflow': tf.__version__,
        'keras': keras.__version__,
    }


def cpu_model():
    """Return the CPU's name as the system gives it."""
    return _cpu_field('model name') or platform.processor() or platform.machine()


def _cpu_flags():
    return set(_cpu_field('flags').split() or _cpu_field('Features').split())


def _cpu_field(name):
    """Return the first value of a /proc/cpuinfo field, '' where there is none."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return next((line.partition(':')[2].strip() for line in file if line.startswith(name)), '')
    except OSError:
        return ''


@contextlib.contextmanager
def hidden_stderr():
    """Keep what C++ code writes to stderr; show it only when the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
