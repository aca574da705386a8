"""What depends on the machine: starting TensorFlow, threads, precision, signals, tf.distribute strategies."""

import contextlib
import os
import platform
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from official_resnet.errors import UserError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from official_resnet.training.config import MachineConfig, TrainConfig

POLICIES = {'fp32': 'float32', 'bf16': 'mixed_bfloat16', 'fp16': 'mixed_float16'}  # TrainConfig.dtype -> Keras' name
LEAST_CHANNELS = 8  # see require_right_gradients
_DTYPE_LOCK = threading.RLock()  # the default precision belongs to the whole process


def start_tensorflow(inter_op_threads: int = 0, intra_op_threads: int = 0) -> None:
    """Import TensorFlow without its start-up messages, set its number of threads, and give Keras its default settings.

    Only programs call this, because the settings are those of the whole process: what KERAS_BACKEND and
    ~/.keras/keras.json say is meant for the user's other programs.

    Args:
        inter_op_threads: Operations that run at once. 0 (TensorFlow chooses) is best for training, 1 for inference.
        intra_op_threads: Threads per operation; 0 is one per core. The last bits of sums depend on this number.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ['KERAS_BACKEND'] = 'tensorflow'
    fault = None
    with hidden_stderr():
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for GPUs, and reports missing libraries
            import keras
        except AssertionError:  # TensorFlow imports Keras
            fault = os.path.join(os.environ.get('KERAS_HOME', '~/.keras'), 'keras.json')
    if fault:
        raise UserError(f"Keras refuses a value in its settings '{fault}'; change or delete it")
    keras.config.set_floatx('float32')
    keras.config.set_image_data_format('channels_last')
    if inter_op_threads:
        tf.config.threading.set_inter_op_parallelism_threads(inter_op_threads)
    if intra_op_threads:
        tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)


def known_dtype(dtype: str) -> str:
    """Return `dtype`. 'auto' becomes 'bf16' if the GPU or CPU computes in bfloat16 natively, else 'fp32'."""
    if dtype != 'auto':
        return dtype
    import tensorflow as tf

    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get('compute_capability', (0, 0))
        return 'bf16' if capability >= (8, 0) else 'fp32'  # Ampere
    return 'bf16' if {'amx_bf16', 'avx512_bf16', 'bf16'} & cpu_flags() else 'fp32'


def uses_onednn() -> bool:
    """Return whether TensorFlow computes with oneDNN's kernels on the CPU. TF_ENABLE_ONEDNN_OPTS decides at import."""
    from tensorflow.python.util import _pywrap_util_port

    return _pywrap_util_port.IsMklEnabled()


def require_right_gradients(model: 'keras.Model') -> None:
    """Raise UserError if oneDNN would compute wrong gradients of a network's kernels on this CPU.

    On a CPU with AVX2 and without AVX-512, TensorFlow 2.21's gradient of a strided 1x1 kernel that reads fewer than 8
    channels is wrong, by as much as the gradient itself, or the process crashes. From 8 channels on it is right.
    """
    if not uses_onednn() or 'avx2' not in (known := cpu_flags()) or 'avx512f' in known:
        return
    for layer in model.layers:
        kernel = getattr(layer, 'kernel_size', None)
        if kernel == (1, 1) and max(layer.strides) > 1 and layer.input.shape[-1] < LEAST_CHANNELS:
            raise UserError(
                f'{layer.name} has stride {layer.strides[0]} and reads {layer.input.shape[-1]} channels: on this CPU, '
                f'oneDNN computes wrong gradients of it; set TF_ENABLE_ONEDNN_OPTS=0, or use {LEAST_CHANNELS} filters'
            )


class Process:
    """The only process of a run. If there are several, each is a workers.Worker instead.

    Attributes:
        strategy: The tf.distribute.Strategy of its devices.
        index, count: The number of this process, from 0, and the number of processes.
    """

    index, count = 0, 1

    def __init__(self, strategy: 'tf.distribute.Strategy'):
        self.strategy = strategy

    @property
    def is_chief(self) -> bool:
        """Whether this process writes and prints."""
        return self.index == 0

    def total(self, *numbers: float) -> list[float]:
        """Return the sums of the numbers over all processes. Each process must make the same call."""
        return [float(number) for number in numbers]

    def distribute(self, batches: 'tf.data.Dataset', batch_size: int) -> Iterable:
        """Return this process' shard of the batches, split over its devices."""
        del batch_size  # the strategy splits what it is given
        if self.strategy.num_replicas_in_sync == 1:
            return batches
        return self.strategy.experimental_distribute_dataset(batches)

    def explained(self) -> contextlib.AbstractContextManager:
        """Return a context that turns the errors after the loss of another process into workers.WorkerLost."""
        return contextlib.nullcontext()

    def require_same_step(self, step: int, model_dir: str | None) -> None:
        """Raise UserError if the processes would continue from different steps."""

    def wait(self) -> None:
        """Wait until all processes have made this call."""


def this_process(config: 'TrainConfig') -> Process:
    """Return the Process that trains a TrainConfig. If there are several, call this before TensorFlow computes.

    Raises:
        UserError: Devices or workers are missing, or the batch size is not a multiple of their number.
    """
    if config.machine.distribution_strategy == 'multi_worker_mirrored':
        from official_resnet.training import workers

        return workers.Worker(config.batch_size, config.machine.all_reduce_alg)
    return Process(make_strategy(config.machine, config.batch_size))


@contextlib.contextmanager
def dtype_policy(dtype: str) -> Iterator[None]:
    """Make TrainConfig.dtype the default precision of Keras in the context, whatever floatx is. Other threads wait."""
    import keras

    with _DTYPE_LOCK:
        before = keras.config.floatx(), keras.config.dtype_policy()
        keras.config.set_floatx('float32')
        keras.config.set_dtype_policy(POLICIES[known_dtype(dtype)])
        try:
            yield
        finally:
            keras.config.set_floatx(before[0])
            keras.config.set_dtype_policy(before[1])


@contextlib.contextmanager
def handled_signals(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Call `handler` for SIGTERM and Ctrl-C inside the context."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yield a list to which SIGTERM and the first Ctrl-C append their number. A second Ctrl-C interrupts as usual."""
    received = []

    def note(number, frame) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    is_allowed = threading.current_thread() is threading.main_thread()  # Python handles signals only there
    with handled_signals(note) if is_allowed else contextlib.nullcontext():
        yield received


def make_strategy(machine: 'MachineConfig', batch_size: int) -> 'tf.distribute.Strategy':
    """Return the tf.distribute.Strategy of one process; raises like replicas.choose_strategy."""
    import tensorflow as tf

    gpus = tf.config.list_logical_devices('GPU')
    if not gpus and machine.num_gpus in (None, 0, -1) and machine.distribution_strategy in ('default', 'one_device'):
        return tf.distribute.OneDeviceStrategy('CPU:0')
    from official_resnet.training import replicas

    return replicas.choose_strategy(machine, batch_size, gpus)


def machine_info() -> dict:
    """Return the CPU, memory, GPUs and versions as JSON values, for logs."""
    import keras
    import tensorflow as tf

    details, gpus = tf.config.experimental.get_device_details, tf.config.list_physical_devices('GPU')
    return {
        'cpu': {'model': cpu_model(), 'num_cores': os.cpu_count()},
        'gpu': {'count': len(gpus), 'models': [details(gpu).get('device_name', gpu.name) for gpu in gpus]},
        'memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
        'python': platform.python_version(),
        'tensorflow': tf.__version__,
        'keras': keras.__version__,
        'uses_onednn': uses_onednn(),
    }


def cpu_model() -> str:
    """Return the name of the CPU."""
    return _cpu_field('model name') or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Return the names of the instruction sets that the CPU has."""
    return set((_cpu_field('flags') or _cpu_field('Features')).split())


def _cpu_field(name):
    """Return the first value of a field in /proc/cpuinfo, or '' if there is none."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        return next((line.partition(':')[2].strip() for line in file if line.startswith(name)), '')
    return ''


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
    """Hide what C++ code writes to stderr, unless an error ends the block."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception:
            file.seek(0)
            os.write(stderr, file.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
