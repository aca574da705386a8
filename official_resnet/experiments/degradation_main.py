"""Show the degradation problem: plain nets against residual nets on CIFAR-10, 1512.03385 Fig. 1 and 6.

    python degradation_main.py --data_dir ~ --quick     # plain and residual, 20 and 56 layers: minutes on two cores
    python degradation_main.py --data_dir ~             # the paper's 64,000 steps each

On two cores of an AMD EPYC, --quick --train_epochs=40 took 43 minutes (n = 1): training error of plain-20
22.0 %, plain-56 68.8 %, residual-20 14.3 %, residual-56 23.7 %. The paper's steps have not been run.

A plain net of 56 layers has a higher *training* error than one of 20: it is not overfitting but harder to
optimise. With shortcuts (option A, which adds no parameter) the order is reversed, in the end. --quick: the
first 10,000 training pictures, 6 epochs, the rate dropped after 3 and 4.5. Nets of 110 layers or more begin
with an epoch at a tenth of the rate, as in the paper. The same command continues what was stopped; finished
nets are kept.
Results in --output_dir: degradation.png, degradation.json (curves, final errors, and what became of the claim).
"""

import sys

try:
    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

KINDS = {'plain': None, 'residual': 'A'}  # the shortcut of each


def define_flags():
    """Return the flags, in a set of their own."""
    define = experiment_program.cifar_flags('/tmp/resnet_degradation', trains=True)
    experiment_program.define_list(define, 'depths', '20,56', 'Layers of the nets, each 6n+2.')
    return define.values


def run_degradation(values):
    """Train the nets the flags ask for, judge the claim, write the results."""
    from official_resnet.experiments import runs

    depths = sorted(set(map(int, values.depths)))
    nets = {f'{kind}-{n}': runs.network(n, shortcut=shortcut) for kind, shortcut in KINDS.items() for n in depths}

    def conclude(nets):
        if len(depths) == 1:
            return None
        claim = judge(nets, depths[0], depths[-1])
        print(claim['text'])
        return claim

    def drawing(nets, about, path):
        panels = {f'{kind} nets': {f'{n} layers': nets[f'{kind}-{n}']['curves'] for n in depths} for kind in KINDS}
        return 'error_curves', panels, path, f'Plain against residual nets: {about}'

    runs.run(values, 'degradation', 6, nets, conclude, drawing)


def judge(nets, shallow, deep):
    """Return what the final training errors of two depths say: {'text', 'plain', 'residual'}.

    The errors compared are those of the final weights on the training images as they are (train_error_inference): the
    same for every net, while the running error of the curves is that of weights that still change. `nets` is
    {'plain-20': result of runs.train_net, ...}.
    """
    claim, sentences, depths = {}, [], [shallow, deep]
    for kind, verdict in (('plain', 'degradation'), ('residual', 'the deeper one is not better')):
        errors = [nets[f'{kind}-{depth}']['final']['train_error_inference'] for depth in depths]
        is_worse = None if None in errors else errors[1] > errors[0]
        claim[kind] = {'depths': depths, 'train_error_inference': errors, 'is_deep_worse': is_worse}
        texts = ['failed' if error is None else f'{error:.2f} %' for error in errors]
        verdict = {True: verdict, False: 'no degradation', None: 'not compared'}[is_worse]
        compared = f'{shallow} layers {texts[0]}, {deep} layers {texts[1]}: {verdict}'
        sentences.append(f'training error of {kind} nets: {compared}')
    return claim | {'text': '; '.join(sentences)}


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_degradation))
