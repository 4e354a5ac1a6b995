"""Models to start from, as lists of layers: a GPT, a multilayer perceptron, a convolutional net."""

from jaxpipe.models.conv import convnet as convnet
from jaxpipe.models.gpt import GPTConfig as GPTConfig
from jaxpipe.models.gpt import gpt as gpt
from jaxpipe.models.mlp import mlp as mlp
