"""Models to start from, as lists of layers: GPT, Llama, ViT, an MLP, a convolutional net."""

from jaxpipe.models.conv import convnet as convnet
from jaxpipe.models.gpt import GPTConfig as GPTConfig
from jaxpipe.models.gpt import gpt as gpt
from jaxpipe.models.llama import LlamaConfig as LlamaConfig
from jaxpipe.models.llama import llama as llama
from jaxpipe.models.mlp import mlp as mlp
from jaxpipe.models.vit import ViTConfig as ViTConfig
from jaxpipe.models.vit import vit as vit
