"""What this machine can do: TensorFlow started quietly, threads, precision, tf.distribute strategies."""

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
    import tensorflow as tf

    from official_resnet.training.config import MachineConfig, TrainConfig

POLICIES = {'fp32': 'float32', 'bf16': 'mixed_bfloat16', 'fp16': 'mixed_float16'}  # a TrainConfig's dtype -> Keras'


def start_tensorflow(inter_op_threads: int = 0, intra_op_threads: int = 0) -> None:
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


def known_dtype(dtype: str) -> str:
    """Return a precision: 'auto' is 'bf16' where the GPU or CPU computes in bfloat16 itself, else 'fp32'."""
    import tensorflow as tf

    if dtype != 'auto':
        return dtype
    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get('compute_capability', (0, 0))
        return 'bf16' if capability >= (8, 0) else 'fp32'  # Ampere
    cpu_flags = (_cpu_field('flags') or _cpu_field('Features')).split()
    return 'bf16' if {'amx_bf16', 'avx512_bf16', 'bf16'} & set(cpu_flags) else 'fp32'


class Process:
    """The process that trains, which is alone. Where there are several, workers.Worker takes its place.

    Attributes:
        strategy: tf.distribute.Strategy of its devices.
        index, count: which of the processes this is, from 0, and how many there are.
    """

    index, count = 0, 1

    def __init__(self, strategy: 'tf.distribute.Strategy'):
        self.strategy = strategy

    @property
    def is_chief(self) -> bool:
        """Whether this process writes and prints."""
        return self.index == 0

    def total(self, *numbers: float) -> list[float]:
        """Return the sums of numbers over the processes, the same in each; all must ask at the same place."""
        return [float(number) for number in numbers]

    def distribute(self, batches: 'tf.data.Dataset', batch_size: int) -> Iterable:
        """Return batches of a tf.data.Dataset, this process' share of them, split over its devices."""
        del batch_size  # the strategy splits what it is given
        if self.strategy.num_replicas_in_sync == 1:
            return batches
        return self.strategy.experimental_distribute_dataset(batches)

    def explained(self) -> contextlib.AbstractContextManager:
        """Return a context in which an error that only other processes explain says so."""
        return contextlib.nullcontext()

    def require_same_step(self, step: int, model_dir: str | None) -> None:
        """Refuse to go on from another step than the other processes."""

    def wait(self) -> None:
        """Wait for the others before this process ends."""


def this_process(config: 'TrainConfig') -> Process:
    """Return the process that trains as a TrainConfig says; for several processes, call this before TensorFlow works.

    Raises:
        UserError: devices or workers that are not there, or a batch that does not divide by their number.
    """
    if config.machine.distribution_strategy == 'multi_worker_mirrored':
        from official_resnet.training import workers

        return workers.Worker(config.batch_size, config.machine.all_reduce_alg)
    return Process(make_strategy(config.machine, config.batch_size))


@contextlib.contextmanager
def dtype_policy(dtype: str) -> Iterator[None]:
    """Make the precision of a TrainConfig Keras' default inside the context only."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[known_dtype(dtype)])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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
    """Yield a list to which SIGTERM and the first Ctrl-C append their number; a second Ctrl-C works as ever."""
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    is_allowed = threading.current_thread() is threading.main_thread()  # to handle signals, by Python
    with handled_signals(note) if is_allowed else contextlib.nullcontext():
        yield received


def make_strategy(machine: 'MachineConfig', batch_size: int) -> 'tf.distribute.Strategy':
    """Return the tf.distribute.Strategy of a MachineConfig in one process.

    Raises:
        UserError: more GPUs asked for than are there, or a batch that does not divide by them.
    """
    import tensorflow as tf

    gpus = tf.config.list_logical_devices('GPU')
    asked, kind = machine.num_gpus, machine.distribution_strategy
    count = min(len(gpus), 1) if asked is None else len(gpus) if asked == -1 else asked
    if count > len(gpus):
        raise UserError(
            f'--num_gpus={count}, but TensorFlow sees {len(gpus)}; lower --num_gpus, or pip install '
            "'tensorflow[and-cuda]' and check the driver with nvidia-smi"
        )
    if kind == 'off' and count > 1:
        raise UserError(f"--num_gpus={count} needs --distribution_strategy=mirrored, not 'off'")
    if kind == 'mirrored' or (kind == 'default' and count > 1):
        devices = gpus[:count] or tf.config.list_logical_devices('CPU')
        from official_resnet.training import replicas

        strategy = replicas.mirror(tuple(device.name for device in devices), machine.all_reduce_alg)
    elif kind == 'off':
        strategy = tf.distribute.get_strategy()
    else:
        strategy = tf.distribute.OneDeviceStrategy('GPU:0' if count else 'CPU:0')
    require_even(batch_size, strategy.num_replicas_in_sync)
    return strategy


def require_even(batch_size: int, replicas: int) -> None:
    """Refuse a batch that does not divide by the devices."""
    if batch_size % replicas:
        nearest = max(batch_size // replicas, 1) * replicas
        raise UserError(f'--batch_size={batch_size} does not divide by {replicas} devices; try --batch_size={nearest}')


def machine_info() -> dict:
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


def cpu_model() -> str:
    """Return the CPU's name as the system gives it."""
    return _cpu_field('model name') or platform.processor() or platform.machine()


def _cpu_field(name):
    """Return the first value of a /proc/cpuinfo field, '' where there is none."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return next((line.partition(':')[2].strip() for line in file if line.startswith(name)), '')
    except OSError:
        return ''


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
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
