"""Runs on paper: whether they fit, how long they take, and what would fit instead."""

from jaxpipe.planner.chips import CHIPS as CHIPS
from jaxpipe.planner.chips import Chip as Chip
from jaxpipe.planner.chips import Devices as Devices
from jaxpipe.planner.chips import parse_devices as parse_devices
from jaxpipe.planner.described import described_mesh as described_mesh
from jaxpipe.planner.plan import Alternative as Alternative
from jaxpipe.planner.plan import Plan as Plan
from jaxpipe.planner.plan import estimate as estimate
from jaxpipe.planner.plan import plan as plan
from jaxpipe.planner.sizes import abstract_batch as abstract_batch
from jaxpipe.planner.sizes import with_classes as with_classes
from jaxpipe.planner.speed import Assumptions as Assumptions
from jaxpipe.planner.speed import Speed as Speed
