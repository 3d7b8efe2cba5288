"""What MLflow runs to make the model: code, no pickle."""

from mlflow.models import set_model

from lookalike.serving.recommender import Recommender

set_model(Recommender())
