"""Where each parameter lives, at rest and in the step."""

from jaxpipe.storage.layout import Cut as Cut
from jaxpipe.storage.layout import Extent as Extent
from jaxpipe.storage.layout import Layout as Layout
from jaxpipe.storage.layout import LeafSpec as LeafSpec
from jaxpipe.storage.layout import build_layout as build_layout
from jaxpipe.storage.placed import Placed as Placed
from jaxpipe.storage.placed import abstract_placed as abstract_placed
from jaxpipe.storage.placed import axes as axes
from jaxpipe.storage.placed import logical as logical
from jaxpipe.storage.placed import place as place
from jaxpipe.storage.placed import specs as specs
from jaxpipe.storage.rows import Rows as Rows
from jaxpipe.storage.rows import accumulate as accumulate
from jaxpipe.storage.rows import in_parts as in_parts
from jaxpipe.storage.rows import read as read
from jaxpipe.storage.rows import write as write
from jaxpipe.storage.sharing import BufferSpec as BufferSpec
from jaxpipe.storage.sharing import Home as Home
from jaxpipe.storage.sharing import Piece as Piece
from jaxpipe.storage.sharing import share as share
from jaxpipe.storage.ties import collect_gradients as collect_gradients
from jaxpipe.storage.ties import send_copies as send_copies
