"""Data sets, from their files to batches: found, decoded, augmented, normalised. TensorFlow, no Keras."""
