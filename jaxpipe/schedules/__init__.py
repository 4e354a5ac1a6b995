"""Pipeline schedules as data: make them, verify them, draw them, simulate them."""

from jaxpipe.schedules import draw as draw
from jaxpipe.schedules.forward_only import forward_only as forward_only
from jaxpipe.schedules.gpipe import gpipe as gpipe
from jaxpipe.schedules.names import NAMES as NAMES
from jaxpipe.schedules.names import by_name as by_name
from jaxpipe.schedules.one_f_one_b import one_f_one_b as one_f_one_b
from jaxpipe.schedules.place import loop as loop
from jaxpipe.schedules.place import place as place
from jaxpipe.schedules.place import vee as vee
from jaxpipe.schedules.simulate import Costs as Costs
from jaxpipe.schedules.simulate import Timeline as Timeline
from jaxpipe.schedules.simulate import simulate as simulate
from jaxpipe.schedules.table import Action as Action
from jaxpipe.schedules.table import Op as Op
from jaxpipe.schedules.table import Order as Order
from jaxpipe.schedules.table import Schedule as Schedule
from jaxpipe.schedules.table import dump as dump
from jaxpipe.schedules.table import needs as needs
from jaxpipe.schedules.table import parse as parse
from jaxpipe.schedules.table import parse_action as parse_action
from jaxpipe.schedules.verify import verify as verify
