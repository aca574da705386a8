"""The real trackers without a server: what they have stored is read back. Run with `-m track`."""

import json
import os

import pytest
from fixtures import programs

from official_resnet import checkpoints

pytestmark = pytest.mark.track
FLAGS = '-rs 8 -bs 16 --train_epochs 2 --steps_per_loop 1 --bn_momentum 0.1 --epochs_between_evals 1 --nodownload'
BLOCK = 32768  # bytes, of a .wandb file


def stored_by_wandb(folder):
    """[(run id, name, config, {step: metrics})] of each start of a training."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.glob('wandb/offline-run-*/*.wandb'), key=os.path.getmtime):
        data, position, record, about, rows = path.read_bytes(), 7, b'', None, {}
        while position + 7 <= len(data):  # records in LevelDB's log format
            if BLOCK - position % BLOCK < 7:
                position += BLOCK - position % BLOCK
                continue
            end = position + 7 + int.from_bytes(data[position + 4 : position + 6], 'little')
            record += data[position + 7 : end]
            if data[position + 6] in (1, 4):  # whole, or its last part
                message, record = wandb_internal_pb2.Record.FromString(record), b''
                if message.HasField('run') and about is None:
                    config = {item.key: json.loads(item.value_json) for item in message.run.config.update}
                    about = message.run.run_id, message.run.display_name, config
                elif message.HasField('history'):
                    row = {
                        '/'.join(item.nested_key) or item.key: json.loads(item.value_json)
                        for item in message.history.item
                    }
                    rows[int(row['_step'])] = row
            position = end
        found.append((*about, rows))
    return found


def stored_by_mlflow(folder):
    import mlflow

    mlflow.set_tracking_uri(f'sqlite:///{folder}/mlflow.db')
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name('official-resnet').experiment_id])
    found = []
    for run in runs:
        rows = {}
        for name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                rows.setdefault(point.step, {})[name] = point.value
        assert run.info.status == 'FINISHED'
        found.append((run.info.run_id, run.info.run_name, {'seed': int(run.data.params['seed'])}, rows))
    return found


def stored_by_trackio(folder):
    import sqlite3

    [path] = (folder / 'trackio').glob('*.db')
    with sqlite3.connect(path) as base:
        rows, names = {}, set()
        for name, step, metrics in base.execute('SELECT run_name, step, metrics FROM metrics ORDER BY id'):
            rows.setdefault(step, {}).update(json.loads(metrics))
            names.add(name)
        [(config,)] = {*base.execute('SELECT config FROM configs')}
    [name] = names
    return [(name, name, json.loads(config), rows)]


STORED = {'wandb': stored_by_wandb, 'mlflow': stored_by_mlflow, 'trackio': stored_by_trackio}


@pytest.mark.parametrize('tracker', STORED)
def test_a_run_in_two_parts_is_one_run(cifar_dir, tmp_path, tracker):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('WANDB', 'MLFLOW'))}
    environment |= {'TRACKIO_DIR': f'{tmp_path}/trackio', 'HOME': str(tmp_path)}
    command = f'cifar10_main --data_dir {cifar_dir} --model_dir {tmp_path}/mine --track={tracker} {FLAGS}'
    for more in (' --max_train_steps 9', ''):
        code, out, err = programs.run(command + more, cwd=tmp_path, env=environment)
        assert code == 0 and 'goes on without' not in out and 'oneDNN' not in err, (out, err)
    found = STORED[tracker](tmp_path)
    assert len(found) == (2 if tracker == 'wandb' else 1)  # parts that `wandb sync` joins, by their id
    assert len({run_id for run_id, *_ in found}) == 1
    assert {name for _, name, *_ in found} == {'mine'} and found[0][2]['seed'] == 0
    rows = {step: row for *_, part in found for step, row in part.items()}
    assert sorted(rows) == [*range(1, 15)]
    lines = {(line['split'], line['epoch']): line for line in checkpoints.read_metrics(tmp_path / 'mine')}
    for epoch in (1, 2):
        of_epoch = [rows[step]['train/loss'] for step in range(7 * epoch - 6, 7 * epoch + 1)]
        assert sum(of_epoch) / 7 == pytest.approx(lines['train', epoch]['loss'], rel=1e-5)
        assert rows[7 * epoch]['test/accuracy'] == pytest.approx(lines['test', epoch]['accuracy'])
        assert rows[7 * epoch]['learning_rate'] == pytest.approx(lines['train', epoch]['learning_rate'])
