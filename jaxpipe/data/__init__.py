"""Text as bytes: the corpus and its split, batches of windows, and a baseline to beat."""

from jaxpipe.data.bigram import Bigram as Bigram
from jaxpipe.data.bigram import fit_bigram as fit_bigram
from jaxpipe.data.corpus import Corpus as Corpus
from jaxpipe.data.corpus import read_corpus as read_corpus
from jaxpipe.data.windows import Batch as Batch
from jaxpipe.data.windows import held_out_batches as held_out_batches
from jaxpipe.data.windows import training_batch as training_batch
