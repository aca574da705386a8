"""What a run needs besides the loop: configuration, steps, optimizers, devices, workers, transfer."""
