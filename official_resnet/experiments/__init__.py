"""Figures and the experiments of the papers.

degradation_main     plain against residual networks, 1512.03385 Fig. 1 and 6
gradient_flow_main   how gradients reach the first layers: gradient_chain (one neuron a layer), net_gradients
shortcuts_main       shortcuts and activation orders, 1603.05027 Tables 1 and 2; blocks has their block functions
experiment_program   what these programs share: flags, start, exit codes
runs                 networks trained one after the other, each once; results
"""
