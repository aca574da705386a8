"""Experiments: those of the papers, transfer learning, and the network of a tutorial.

architecture_table   what each network consists of and costs, 1512.03385 Table 1
degradation_main     plain against residual networks, 1512.03385 Fig. 1 and 6
gradient_flow_main   how gradients reach the first layers: gradient_chain (one neuron a layer), net_gradients
shortcuts_main       shortcuts and activation orders, 1603.05027 Tables 1 and 2; blocks has their block functions
transfer_main        a network trained on some classes learns others from few images
tutorial_resnet      the block and the network of a widely read tutorial
experiment_program   what the programs (*_main) share: flags, start, exit codes
runs                 trains networks one after the other, each once; writes the results
"""
