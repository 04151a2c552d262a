"""The deployed model. The only room that imports transformers."""

from app.model.classifier import Classifier, Encoding, Outputs, Prediction
from app.model.loading import load

__all__ = ["Classifier", "Encoding", "Outputs", "Prediction", "load"]
