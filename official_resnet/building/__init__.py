"""ImageNet and own images -> TFRecord shards: what the commands in data/ do. Nothing here imports TensorFlow."""
