"""Samples and batches, of text as tokens or of arrays; and a baseline to beat."""

from jaxpipe.data.arrays import Arrays as Arrays
from jaxpipe.data.arrays import ArraySamples as ArraySamples
from jaxpipe.data.arrays import read_arrays as read_arrays
from jaxpipe.data.batches import Batch as Batch
from jaxpipe.data.batches import Batches as Batches
from jaxpipe.data.batches import Samples as Samples
from jaxpipe.data.batches import spread as spread
from jaxpipe.data.bigram import Bigram as Bigram
from jaxpipe.data.bigram import fit_bigram as fit_bigram
from jaxpipe.data.config import DataConfig as DataConfig
from jaxpipe.data.corpus import Corpus as Corpus
from jaxpipe.data.corpus import read_corpus as read_corpus
from jaxpipe.data.documents import Document as Document
from jaxpipe.data.documents import Documents as Documents
from jaxpipe.data.samples import TokenSamples as TokenSamples
from jaxpipe.data.tokenizer import Bytes as Bytes
from jaxpipe.data.tokenizer import Subwords as Subwords
from jaxpipe.data.tokenizer import Tokenizer as Tokenizer
from jaxpipe.data.tokenizer import train_subwords as train_subwords
from jaxpipe.data.tokens import Tokens as Tokens
from jaxpipe.data.tokens import TokenWriter as TokenWriter
from jaxpipe.data.tokens import open_raw as open_raw
from jaxpipe.data.tokens import open_tokens as open_tokens
from jaxpipe.data.tokens import write_tokens as write_tokens
