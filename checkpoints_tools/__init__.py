"""Foreign checkpoints in, Keras models out, verified: see README.md; read_ckpt.py is the command."""
