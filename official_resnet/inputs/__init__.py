"""Find data sets, decode, augment and normalize their images, and make batches. Uses TensorFlow, not Keras."""
