r"""What training a LoRA layer takes: gradients by hand, and two optimizers."""

from lora_edu.training.gradients import LoraGradients, layer_gradients, lora_gradients
from lora_edu.training.optimizers import SGD, Adam

__all__ = ["SGD", "Adam", "LoraGradients", "layer_gradients", "lora_gradients"]
