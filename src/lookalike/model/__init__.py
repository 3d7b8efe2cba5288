"""TensorFlow: networks, losses, batches, training, search. Imported where a training runs.

TensorFlow reads these variables when it is first imported, which every module here does or leads
to: Horovod and tensorflow-similarity need Keras 2, and oneDNN trains about twice as fast on CPUs
where TensorFlow leaves it off.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
