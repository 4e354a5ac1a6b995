"""Text from a model that was trained: tokens as they come, and characters as they become whole."""

from jaxpipe.generate.characters import Characters as Characters
from jaxpipe.generate.generator import Generator as Generator
from jaxpipe.generate.generator import WhenFull as WhenFull
