"""Deep residual networks on TensorFlow and Keras 3.

Where to find things:

    resnet_model      the networks: ResNetSpec, residual_block, residual_group
    resnet_table      the named networks, what they consist of and cost
    tutorial_resnet   a tutorial's block and net; basic against bottleneck blocks
    layers            the fused BatchNormalization; equal networks: of stock layers, BN folded, strides moved up
    records           bytes <-> (image, label)
    tfrecords         TFRecord files, written, indexed and read at any place without TensorFlow
    jpeg              what the bytes of a picture are; odd pictures -> RGB JPEG
    encoded           pictures that stay on the disk until a batch needs them: shards, folders
    tfds_builders     data sets of tensorflow_datasets
    synthetic         drawn pictures, a data set that needs no download
    image_folder      own pictures, a folder a class
    preprocessing     image -> image; crops of encoded pictures
    input_pipeline    data set -> batched tf.data
    optimizers        SGD with coupled L2, schedules in epochs
    callbacks         progress, metrics as JSON lines, benchmark log
    checkpoints       the atomic training checkpoint
    train_config      TrainConfig: everything that decides the course of a training
    resnet_run_loop   train(), evaluate(), exact resume, several workers
    steps             the compiled functions of the loop
    workers           who trains together; a launcher of several on one machine
    evaluation        accuracy class by class, what is taken for what
    transfer          weights of another net, what is trainable, heads
    feature_cache     a frozen backbone's features, computed once
    cards             what a net's input and outputs mean, beside its .keras file
    prediction        pictures -> names; SavedModel export, the compiled call for inference
    grad_cam          where a net looked
    download          verified, resumable downloads
    devices           quiet start, threads, precision, strategies
    recipes           named sets of hyperparameters
    resnet_flags      command line -> TrainConfig
    train_program     what the training programs share
    *_main            the programs
    experiments       degradation, gradient flow, kinds of shortcut, transfer
"""

__version__ = '0.1.0'
