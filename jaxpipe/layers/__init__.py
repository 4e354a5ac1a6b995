"""What a layer is: Flax linen modules, NNX modules and plain functions behind one face."""

from jaxpipe.layers.build import LayerLike as LayerLike
from jaxpipe.layers.build import build_layers as build_layers
from jaxpipe.layers.layer import Layer as Layer
from jaxpipe.layers.spec import FunctionLayer as FunctionLayer
from jaxpipe.layers.spec import LayerSpec as LayerSpec
from jaxpipe.layers.spec import TiedLayerSpec as TiedLayerSpec
