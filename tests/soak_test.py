"""Kill a run 50 times, wherever it is, and begin again: it ends with the weights of one that nobody touched.

    python -m pytest -m slow tests/soak_test.py -s    # 5 minutes on two quiet cores

SIGKILL comes at random steps, a random time after the step is saved, so also in the middle of a save, of an
evaluation and of the start; ResNet-8, which saves after each step. Result (n = 1): 40 kills of one process in 179 s
and 10 of one of two workers in 127 s, all variables, tests and the state equal to the last bit.
"""

import random
import time

import pytest
from fixtures.programs import finish, start
from fixtures.tiny_training import assert_equal_runs
from fixtures.worker_processes import flags_of, last_step, start_pair, wait_for

EPOCHS = 150  # of 7 steps
NUM_STEPS = 7 * EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize('is_alone,num_kills', [(True, 40), (False, 10)], ids=['alone', 'two workers'])
def test_killed_at_random_moments(cifar_dir, tmp_path, is_alone, num_kills):
    def begin_training(name):
        flags = flags_of(cifar_dir, tmp_path / name, EPOCHS)
        return [start(f'cifar10_main {flags}')] if is_alone else start_pair(flags)

    begin = time.monotonic()
    for code, out, err in finish(begin_training('whole'), 600):
        assert code == 0, (out, err)
    draw = random.Random(num_kills)
    reached = []
    for step in sorted(draw.randrange(NUM_STEPS - 50) for _ in range(num_kills)):
        processes = begin_training('killed')
        begun = last_step(tmp_path / 'killed')
        if step > begun:
            wait_for(step, tmp_path / 'killed', processes)
            time.sleep(draw.uniform(0, 0.2))
        else:  # it came further than that before it was killed: now it dies while it starts, or at its first step
            end = time.monotonic() + draw.uniform(0, 8)
            while time.monotonic() < end and last_step(tmp_path / 'killed') == begun:
                time.sleep(0.01)
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        draw.choice(processes).kill()
        codes = [code for code, _, _ in finish(processes, 60)]  # what is left of the workers notices
        assert sorted(codes) in ([-9], [-9, 1], [-9, -9])  # or is killed, where TensorFlow was about to connect them
        reached.append(last_step(tmp_path / 'killed'))
    for code, out, err in finish(begin_training('killed'), 600):
        assert code == 0, (out, err)
    assert_equal_runs(tmp_path / 'killed', tmp_path / 'whole')
    print(f'\n{num_kills} kills in {time.monotonic() - begin:.0f} s, after the steps {reached}: equal to the last bit')
