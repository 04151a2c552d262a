"""The deployed model. The only room that imports transformers."""

from app.model.answers import Answered, Ask, Decoding, Encoding, Generation, Output, Prediction, Read, Sampling
from app.model.classifier import Classifier
from app.model.deployed import Model
from app.model.generator import Generator, Pieces
from app.model.loading import load

__all__ = [
    "Answered",
    "Ask",
    "Classifier",
    "Decoding",
    "Encoding",
    "Generation",
    "Generator",
    "Model",
    "Output",
    "Pieces",
    "Prediction",
    "Read",
    "Sampling",
    "load",
]
