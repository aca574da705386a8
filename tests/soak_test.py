"""Kill programs 100 times, wherever they are, and begin again: they end with the bits of one that nobody touched.

    python -m pytest -m slow tests/soak_test.py -s

SIGKILL comes to a training at random steps, a random time after the step is saved, so also in the middle of a save, of
an evaluation and of the start; ResNet-8, which saves after each step. It comes to the shard builder at random moments,
to the process that the user started or to one of its children. docs/results.md has the result.
"""

import os
import pathlib
import random
import shutil
import signal
import time

import pytest
from fixtures import data_commands
from fixtures.imagenet_shards import draw, write_folder
from fixtures.programs import finish, start
from fixtures.tiny_training import assert_equal_runs
from fixtures.worker_processes import flags_of, last_step, start_pair, wait_for

EPOCHS = 150  # of 7 steps
NUM_STEPS = 7 * EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize('is_alone,num_kills', [(True, 60), (False, 20)], ids=['alone', 'two workers'])
def test_a_training_that_is_killed_at_random_moments(cifar_dir, tmp_path, is_alone, num_kills):
    def begin_training(name):
        flags = flags_of(cifar_dir, tmp_path / name, EPOCHS)
        return [start(f'cifar10_main {flags}')] if is_alone else start_pair(flags)

    begin = time.monotonic()
    for code, out, err in finish(begin_training('whole'), 600):
        assert code == 0, (out, err)
    random_moments = random.Random(num_kills)
    reached = []
    for step in sorted(random_moments.randrange(NUM_STEPS - 50) for _ in range(num_kills)):
        processes = begin_training('killed')
        begun = last_step(tmp_path / 'killed')
        if step > begun:
            wait_for(step, tmp_path / 'killed', processes)
            time.sleep(random_moments.uniform(0, 0.2))
        else:  # it came further than that before it was killed: now it dies while it starts, or at its first step
            end = time.monotonic() + random_moments.uniform(0, 8)
            while time.monotonic() < end and last_step(tmp_path / 'killed') == begun:
                time.sleep(0.01)
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        random_moments.choice(processes).kill()
        if last_step(tmp_path / 'killed') == begun:  # the other may wait for it to arrive, for minutes
            time.sleep(5)
            for process in processes:
                process.kill()
        codes = [code for code, _, _ in finish(processes, 60)]  # what is left of the workers notices
        assert sorted(codes) in ([-9], [-9, 1], [-9, -9])  # or is killed, where TensorFlow was about to connect them
        reached.append(last_step(tmp_path / 'killed'))
    for code, out, err in finish(begin_training('killed'), 600):
        assert code == 0, (out, err)
    assert_equal_runs(tmp_path / 'killed', tmp_path / 'whole')
    print(f'\n{num_kills} kills in {time.monotonic() - begin:.0f} s, after the steps {reached}: equal to the last bit')


@pytest.mark.slow
def test_a_build_that_is_killed_at_random_moments(tmp_path, num_kills=20):
    write_folder(tmp_path / 'images', draw(3000))

    def begin_build(name):
        (tmp_path / name).mkdir(exist_ok=True)
        flags = [f'--train_directory={tmp_path}/images', '--validation_directory=', '--num_threads=2']
        flags += [f'--output_directory={tmp_path}/{name}', '--train_shards=40']
        return start(data_commands.command('build_image_data', *flags))

    def end_build(process):
        [(code, out, err)] = finish([process], 600)
        assert code == 0, (out, err)

    begin = time.monotonic()
    end_build(begin_build('whole'))
    seconds, whole = time.monotonic() - begin, data_commands.outputs(tmp_path / 'whole')
    random_moments, num_done, num_builds = random.Random(num_kills), 0, 0
    while num_done < num_kills:
        process = begin_build('killed')
        time.sleep(random_moments.uniform(0, 0.5) * seconds)
        children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        os.kill(random_moments.choice([process.pid, *map(int, children)]), signal.SIGKILL)
        [(code, out, err)] = finish([process], 60)
        num_done += code != 0  # it may have ended before
        if num_done == num_kills or len(list((tmp_path / 'killed').glob('train-0*'))) > 30:
            end_build(begin_build('killed'))
            assert data_commands.outputs(tmp_path / 'killed') == whole
            assert not [path for path in (tmp_path / 'killed').rglob('*') if 'part' in path.name]
            shutil.rmtree(tmp_path / 'killed')
            num_builds += 1
    print(f'\n{num_kills} kills in {time.monotonic() - begin:.0f} s, {num_builds} builds: the same bytes')
