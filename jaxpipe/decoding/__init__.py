"""Text through a pipeline, a token after the other: each stage keeps what its layers remember."""

from jaxpipe.decoding.decoder import Decoder as Decoder
from jaxpipe.decoding.decoder import Sequences as Sequences
