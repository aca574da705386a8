"""Build TFRecord shards of ImageNet or of your own images for the commands in data/. TensorFlow is not imported."""
