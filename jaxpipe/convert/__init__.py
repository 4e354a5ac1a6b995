"""Weights to and from other libraries, a layer at a time. Never by pickle."""

from jaxpipe.convert.families import FAMILIES as FAMILIES
from jaxpipe.convert.families import Family as Family
from jaxpipe.convert.families import describe_model as describe_model
from jaxpipe.convert.families import described_model as described_model
from jaxpipe.convert.families import family_of as family_of
from jaxpipe.convert.huggingface import copy_tokenizer as copy_tokenizer
from jaxpipe.convert.huggingface import read_huggingface as read_huggingface
from jaxpipe.convert.huggingface import write_huggingface as write_huggingface
from jaxpipe.convert.tensors import write_tensors as write_tensors
from jaxpipe.convert.whole import Imported as Imported
from jaxpipe.convert.whole import export_checkpoint as export_checkpoint
from jaxpipe.convert.whole import import_checkpoint as import_checkpoint
from jaxpipe.convert.whole import tokenizer_places as tokenizer_places
