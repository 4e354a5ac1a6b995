"""How Sphinx builds these pages: `python -m sphinx -W --keep-going -b html docs docs/_build/html`.

Every `{code-cell}` runs when the pages are built, and one that fails fails the build. With
`-D nb_execution_mode=off` only the words are built.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

# Cells run as they would on a reader's machine without an accelerator: in the Python that builds
# the pages, with its commands, and with patience, since many simulated devices share few cores.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["JAX_PLATFORMS"] = "cpu"
patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {patience}"
os.environ["PYTHONSTARTUP"] = str(HERE / "startup.py")
os.environ["REPOSITORY"] = str(HERE.parent)
os.environ["COLUMNS"] = "90"

project = "jaxpipe"
author = "the jaxpipe developers"
copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "jaxpipe"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["pages.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache", "myst-nb.lexer"]

nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # what other libraries log; an error is an exception

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
default_role = "literal"
