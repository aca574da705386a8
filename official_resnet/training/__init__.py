"""What a training needs besides the loop: configuration, steps, optimizers, devices, workers, transfer."""
