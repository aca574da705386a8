"""Log a run to Weights & Biases, MLflow or trackio, for --track; see docs/logging.md.

Our loop takes several steps in a call, and numbers metrics by the step. The Keras callbacks that wandb and mlflow ship
do not fit: WandbMetricsLogger counts calls as steps, and asks the schedule for the rate of that step; MlflowCallback
logs either by step or by epoch, and evaluations without a step. trackio has none. So each has a few lines here.
"""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import keras

from official_resnet import files
from official_resnet.errors import one_line
from official_resnet.reports import report
from official_resnet.training.config import TrainConfig

PROJECT = 'official-resnet'  # unless the environment names another
RUN_FILE = 'track.json'  # in model_dir: {tracker: id of the run}


class Wandb:
    """Weights & Biases. Without an account (wandb login, WANDB_API_KEY) or WANDB_MODE, it contacts no server."""

    def start(self, name: str, config: Mapping[str, Any], run_id: str | None) -> str:
        """Begin a run, or continue the one with this id; return its id."""
        os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
        import wandb

        mode: Any = None if 'WANDB_MODE' in os.environ or wandb.login(prompt=False) else 'offline'
        project, own = os.environ.get('WANDB_PROJECT', PROJECT), wandb.Settings(console='off')
        self._run = wandb.init(
            project=project, name=name, config=dict(config), id=run_id, resume='allow', mode=mode, settings=own
        )
        return self._run.id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log {name: value} at a step."""
        self._run.log(dict(metrics), step=step)

    def finish(self, is_done: bool) -> None:
        """End the run."""
        self._run.finish(0 if is_done else 1)


class Mlflow:
    """MLflow, in the store of MLFLOW_TRACKING_URI; by default mlflow.db in the current folder."""

    def start(self, name: str, config: Mapping[str, Any], run_id: str | None) -> str:
        """See Wandb."""
        os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
        import mlflow

        self._mlflow = mlflow
        if not {'MLFLOW_EXPERIMENT_NAME', 'MLFLOW_EXPERIMENT_ID'} & os.environ.keys():
            mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else name)
        if not run_id:  # a parameter cannot change
            mlflow.log_params(report.flatten(config))
        return run.info.run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See Wandb."""
        self._mlflow.log_metrics(metrics, step=step)

    def finish(self, is_done: bool) -> None:
        """See Wandb."""
        self._mlflow.end_run('FINISHED' if is_done else 'KILLED')


class Trackio:
    """trackio, in its local folder (TRACKIO_DIR), or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    def start(self, name: str, config: Mapping[str, Any], run_id: str | None) -> str:
        """See Wandb. A run is continued by its name."""
        import trackio

        project = os.environ.get('TRACKIO_PROJECT', PROJECT)
        with contextlib.suppress(ValueError):  # there is no project yet
            if not run_id and name in [run.name for run in trackio.Api().runs(project)]:
                name += f'-{uuid.uuid4().hex[:6]}'  # another model_dir had this name
        resume = 'allow' if run_id else 'never'
        self._run = trackio.init(project=project, name=run_id or name, config=dict(config), resume=resume)
        return self._run.name

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See Wandb."""
        self._run.log(dict(metrics), step=step)

    def finish(self, is_done: bool) -> None:
        """See Wandb."""
        self._run.finish()


TRACKERS: dict[str, Callable[[], Any]] = {'wandb': Wandb, 'mlflow': Mlflow, 'trackio': Trackio}


class Track(keras.callbacks.Callback, contextlib.AbstractContextManager):
    """Log a run to a tracker. If that fails, a line says so, and the training goes on without the tracker.

    At each call of the loop: train/loss and train/accuracy, the means over its steps, learning_rate and
    images_per_second. After an evaluation: test/loss, test/accuracy and test/accuracy_top_5. The run has the name of
    model_dir and the settings of config.json. Its id is kept in model_dir, so that a continued training logs to it.
    """

    def __init__(self, name: str, config: TrainConfig):
        super().__init__()
        self._name, self._config, self._is_done = name, config, False
        self._tracker: Any = TRACKERS[name]()

    def on_train_begin(self, logs: Any = None) -> None:
        self._try(self._start)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        results, batch_size = self.params['trainer'].results, self._config.batch_size
        loss, accuracy = (results.mean(0, float) / batch_size).tolist()
        rates = {name: logs[name] for name in ('learning_rate', 'images_per_second')}
        self._log({'train/loss': loss, 'train/accuracy': accuracy, **rates}, logs)

    def on_epoch_end(self, epoch: int | None, logs: Any = None) -> None:
        if 'val_loss' in logs:
            names = ('loss', 'accuracy', 'accuracy_top_5')
            self._log({f'test/{name}': logs[f'val_{name}'] for name in names}, logs)

    def on_train_end(self, logs: Any = None) -> None:
        if logs:
            self.on_epoch_end(None, logs)
        self._is_done = True

    def __exit__(self, *exception):
        """End the run in the tracker, whatever ends the training."""
        self._try(lambda: self._tracker.finish(self._is_done))

    def _start(self):
        model_dir = pathlib.Path(str(self._config.machine.model_dir))
        kept = files.read_json(model_dir / RUN_FILE) or {}
        name = model_dir.resolve().name
        run_id = self._tracker.start(name, self._config.to_json(), kept.get(self._name))
        files.write_json(model_dir / RUN_FILE, kept | {self._name: run_id})

    def _log(self, metrics, logs):
        self._try(lambda: self._tracker.log(metrics, int(logs['step'])))

    def _try(self, call):
        if self._tracker is None:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001  a tracker may raise anything
            self._tracker = None
            reason = f'{type(error).__name__}: {error}'
            print(one_line(f'--track={self._name}: the training goes on without it ({reason})'), flush=True)
