r"""What training takes: gradients by hand, losses, optimizers, and a loop that yields a record a step."""

from lora_edu.training.gradients import LoraGradients, layer_gradients, lora_gradients
from lora_edu.training.loop import DivergedError, Record, minibatches, train
from lora_edu.training.losses import cross_entropy, squared_error
from lora_edu.training.optimizers import SGD, Adam, AdamW, constant, warmup_cosine

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "DivergedError",
    "LoraGradients",
    "Record",
    "constant",
    "cross_entropy",
    "layer_gradients",
    "lora_gradients",
    "minibatches",
    "squared_error",
    "train",
    "warmup_cosine",
]
