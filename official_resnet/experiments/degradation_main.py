"""Show the degradation problem: plain against residual networks on CIFAR-10, 1512.03385 Fig. 1 and 6.

    python degradation_main.py --data_dir ~ --quick     # plain and residual, 20 and 56 layers: minutes on two cores
    python degradation_main.py --data_dir ~             # the paper's 64,000 steps each

On two cores of an AMD EPYC, --quick --train_epochs=40 took 43 minutes (n = 1): training error of plain-20
22.0 %, plain-56 68.8 %, residual-20 14.3 %, residual-56 23.7 %. The paper's steps have not been run.

A plain network of 56 layers has a higher *training* error than one of 20, so the cause is not overfitting: the network
is harder to optimise. In the paper, after 64,000 steps, 56 layers with shortcuts (option A, which adds no parameters)
are better than 20; --quick is too short to show that. It trains on the first 10,000 training images for 6 epochs; the
learning rate drops after epochs 3 and 4.5. As in the paper, networks of 110 layers or more begin with about an epoch at
a tenth of the learning rate. If the program is stopped, run the same command again to continue; finished networks are
kept. See docs/experiments.md and docs/results.md for the figure and the numbers.
--output_dir receives degradation.png and degradation.json (curves, final errors, and whether the claim holds).
"""

import sys
from typing import Any

try:
    from absl import flags as absl_flags

    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

KINDS = {'plain': None, 'residual': 'A'}  # kind of network -> its shortcut


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program."""
    define = experiment_program.cifar_flags('/tmp/resnet_degradation', trains=True)
    experiment_program.define_list(define, 'depths', '20,56', 'Numbers of layers of the networks, each 6n+2.')
    return define.values


def run_degradation(values: absl_flags.FlagValues) -> None:
    """Train the networks that the flags ask for, judge the claim, and write the results."""
    from official_resnet.experiments import runs

    depths = sorted(set(map(int, values.depths)))
    nets = {f'{kind}-{n}': runs.network(n, shortcut=shortcut) for kind, shortcut in KINDS.items() for n in depths}

    def conclude(nets) -> dict[str, Any] | None:
        if len(depths) == 1:
            return None
        claim = judge(nets, depths[0], depths[-1])
        print(claim['text'])
        return claim

    def drawing(nets, about, path) -> tuple:
        panels = {f'{kind} networks': {f'{n} layers': nets[f'{kind}-{n}']['curves'] for n in depths} for kind in KINDS}
        return 'error_curves', panels, path, f'Plain against residual networks: {about}'

    runs.run(values, 'degradation', 6, nets, conclude, drawing)


def judge(nets: dict[str, dict[str, Any]], shallow: int, deep: int) -> dict[str, Any]:
    """Return what the final training errors of two depths say: {'text', 'plain', 'residual'}.

    It compares train_error_inference, the error of the final weights on training images that are not augmented. The
    error in the curves is an average over an epoch, while the weights change. `nets` is {'plain-20': result of
    runs.train_net, ...}.
    """
    claim, sentences, depths = {}, [], [shallow, deep]
    for kind in KINDS:
        errors = [nets[f'{kind}-{depth}']['final']['train_error_inference'] for depth in depths]
        is_worse = None if None in errors else errors[1] > errors[0]
        claim[kind] = {'depths': depths, 'train_error_inference': errors, 'is_deep_worse': is_worse}
        texts = ['failed' if error is None else f'{error:.2f} %' for error in errors]
        verdict = {True: 'worse', False: 'not worse', None: 'not compared'}[is_worse]
        sentences.append(f'training error, {kind}: {shallow} layers {texts[0]}, {deep} layers {texts[1]} ({verdict})')
    return claim | {'text': '\n'.join(sentences)}


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_degradation))
