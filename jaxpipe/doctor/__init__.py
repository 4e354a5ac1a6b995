"""Whether a machine can train: what is on it, and what is known to go wrong there."""

from jaxpipe.doctor.checks import CHECKS as CHECKS
from jaxpipe.doctor.checks import KNOWN_BAD as KNOWN_BAD
from jaxpipe.doctor.checks import Finding as Finding
from jaxpipe.doctor.checks import examine as examine
from jaxpipe.doctor.facts import Cache as Cache
from jaxpipe.doctor.facts import Facts as Facts
from jaxpipe.doctor.facts import gather as gather
from jaxpipe.doctor.links import Link as Link
from jaxpipe.doctor.links import measure_links as measure_links
