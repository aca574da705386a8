"""Programs started as workers of one training, and what the tests ask of them."""

import json
import os
import pathlib
import subprocess
import sys
import time

import official_resnet
from official_resnet import checkpoints
from official_resnet.training import workers

PROGRAM = pathlib.Path(official_resnet.__file__).parent / 'cifar10_main.py'


def start_workers(command, has_chief=False):
    """Start two workers of a command, a list of strings, each in a session of its own.

    Args:
        command: list of strings.
        has_chief: TF_CONFIG calls the first 'chief' and the other worker 0, as some cluster managers do.
    """
    hosts = [f'localhost:{port}' for port in workers.free_ports(2)]
    configs = [workers.tf_config(hosts, i) for i in (0, 1)]
    if has_chief:
        cluster = {'chief': hosts[:1], 'worker': hosts[1:]}
        configs = [json.dumps({'cluster': cluster, 'task': {'type': kind, 'index': 0}}) for kind in cluster]
    return [
        subprocess.Popen(
            command,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {'TF_CONFIG': config},
        )
        for config in configs
    ]


def start_pair(flags):
    """Start two workers of cifar10_main."""
    return start_workers([sys.executable, str(PROGRAM), *flags, '--distribution_strategy=multi_worker_mirrored'])


def start_program(flags):
    """Start cifar10_main alone."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *flags],
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(processes, timeout=120):
    """Return [(exit code, stdout, stderr)] of processes, of which none survives this."""
    try:
        ends = [process.communicate(timeout=timeout) for process in processes]
        return [(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]
    finally:
        for process in processes:
            process.kill()


def flags_of(cifar_dir, model_dir, train_epochs=3):
    """Return the flags of a training that saves after each step, of which the fixture's epoch has 7."""
    return [
        '--data_dir',
        str(cifar_dir),
        '--model_dir',
        str(model_dir),
        '--nodownload',
        '-rs',
        '8',
        '-bs',
        '16',
        '--train_epochs',
        str(train_epochs),
        '--epochs_between_evals',
        str(max(1, train_epochs // 6)),
        '--base_learning_rate',
        '0.2',
        '--bn_momentum',
        '0.9',
        '--save_checkpoint_minutes',
        '0',
        '--steps_per_loop',
        '1',
        '--intra_op_parallelism_threads',
        '1',
    ]


def last_step(model_dir):
    """Return the step of the newest checkpoint, 0 without one."""
    found = checkpoints.paths(pathlib.Path(model_dir) / 'checkpoints')
    return int(found[-1].stem.removeprefix('step-')) if found else 0


def wait_for(step, model_dir, processes, timeout=90):
    """Wait until a training has saved a step."""
    deadline = time.monotonic() + timeout
    while last_step(model_dir) < step:
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, [process.communicate() for process in ended]
        assert time.monotonic() < deadline, f'step {step} is not reached in {timeout} s'
        time.sleep(0.01)
