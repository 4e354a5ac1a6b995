"""Layers that know the `tensor` axis: on several ranks each computes, and holds, a share of them.

Outside a pipeline, and on one rank, they are plain Flax layers.
"""

from jaxpipe.nn.attention import Attention as Attention
from jaxpipe.nn.attention import causal_attention as causal_attention
from jaxpipe.nn.attention import full_attention as full_attention
from jaxpipe.nn.cross_entropy import cross_entropy as cross_entropy
from jaxpipe.nn.cut import CutBox as CutBox
from jaxpipe.nn.cut import cut_param as cut_param
from jaxpipe.nn.cut import is_cut as is_cut
from jaxpipe.nn.cut import share as share
from jaxpipe.nn.dense import ColumnDense as ColumnDense
from jaxpipe.nn.dense import ColumnKernel as ColumnKernel
from jaxpipe.nn.dense import RowDense as RowDense
from jaxpipe.nn.dense import columns as columns
from jaxpipe.nn.dense import rows as rows
from jaxpipe.nn.dropout import Dropout as Dropout
from jaxpipe.nn.embedding import Embedding as Embedding
from jaxpipe.nn.embedding import embedding_table as embedding_table
from jaxpipe.nn.embedding import lookup as lookup
from jaxpipe.nn.mlp import GeluMLP as GeluMLP
from jaxpipe.nn.mlp import SwiGLU as SwiGLU
from jaxpipe.nn.norm import LayerNorm as LayerNorm
from jaxpipe.nn.norm import RMSNorm as RMSNorm
from jaxpipe.nn.recompute import recomputed as recomputed
from jaxpipe.nn.rotary import positions_within as positions_within
from jaxpipe.nn.rotary import rotary_angles as rotary_angles
from jaxpipe.nn.rotary import rotate as rotate
