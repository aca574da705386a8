"""Temporary folders: of processes that live, of killed ones, and of many that start at once."""

import concurrent.futures
import os
import signal
import sys

from fixtures import programs

from official_resnet import folders

HOLD = """
import pathlib, sys, time
from official_resnet import folders
with folders.temporary(sys.argv[1]) as folder:
    (folder / 'file').write_text('x')
    pathlib.Path(sys.argv[1], 'held').touch()
    time.sleep(60)
"""


def test_the_folder_of_a_killed_process_is_deleted_by_the_next(tmp_path):
    process = programs.start([sys.executable, '-c', HOLD, str(tmp_path)])
    programs.wait_for((tmp_path / 'held').exists, process)
    with folders.temporary(tmp_path) as ours:
        assert len(list(tmp_path.glob('.part.*'))) == 2  # that of the process, which lives, stays
    process.send_signal(signal.SIGKILL)
    programs.finish([process])
    assert len(list(tmp_path.glob('.part.*'))) == 1 and not ours.exists()
    with folders.temporary(tmp_path, 'other'):
        assert len(list(tmp_path.glob('.part.*'))) == 2  # that of another name stays
    with folders.temporary(tmp_path) as ours:
        assert list(tmp_path.glob('.part.*')) == [ours]
    assert os.listdir(tmp_path) == ['held']


def test_no_folder_is_taken_for_a_left_one_while_many_start(tmp_path):
    def use(i):
        with folders.temporary(tmp_path) as folder:
            (folder / 'file').write_text('x')
            return (folder / 'file').read_text()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(150))) == ['x'] * 150
    assert os.listdir(tmp_path) == []
