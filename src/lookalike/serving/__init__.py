"""One MLflow model of encoder and index, and those who ask it. No Spark, no TensorFlow."""
