"""Be one of several workers, for trainings one after another: python worker_program.py JOBS OUT < /dev/null.

TF_CONFIG says which. JOBS is a JSON list of TrainConfigs (to_json), each with a field '_worker_1' more, the fields of
MachineConfig that worker 1 has of its own. OUT-<worker>-<job>.npz is what it came to: the variables, the losses and
evaluations of the epochs, or the message of the UserError.
"""

import json
import os
import sys

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

from official_resnet.training import devices, workers

index, _ = workers.configure()
devices.start_tensorflow()
workers.join(None)

import numpy as np  # noqa: E402

from official_resnet import errors, resnet_run_loop  # noqa: E402
from official_resnet.training import callbacks  # noqa: E402

for number, fields in enumerate(json.load(open(sys.argv[1], encoding='utf-8'))):
    own = fields.pop('_worker_1')
    config = resnet_run_loop.TrainConfig.from_json(fields).with_machine(**own if index == 1 else {})
    metrics = [callbacks.MetricsJSON(config.machine.model_dir)] if config.machine.model_dir else []
    try:
        trained = resnet_run_loop.train(config, metrics)
        result = {variable.path: variable.numpy() for variable in trained.model.variables}
        result |= {
            f'history/{name}': values for name, values in trained.history.history.items() if 'second' not in name
        }
        trained.process.wait()
    except errors.UserError as error:
        result = {'error': str(error)}
    np.savez(f'{sys.argv[2]}-{index}-{number}.npz', **result)
os._exit(0)  # as train_program: TensorFlow takes its time
