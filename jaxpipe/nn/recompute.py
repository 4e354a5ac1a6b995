"""Functions of which the backward keeps the arguments only."""

import functools

import jax

# The rest is computed again. It is used where that takes next to no time beside the matrix
# products, and keeps a fraction of the memory. Where F and B stand in one program XLA may merge the
# two computations, which is as well.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)
