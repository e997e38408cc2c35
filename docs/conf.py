"""Build these documents as a site: `sphinx-build -W --keep-going docs build/docs`.

With `-W`, a broken link, a missing page or an unknown reference is an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "gymwire"
author = copyright = "the gymwire authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
exclude_patterns = ["README.md"]  # index.rst includes it
html_theme = "furo"
html_title = "gymwire"
html_show_sourcelink = False
default_role = "code"  # docstrings write `names` as Markdown does
smartquotes = False  # an option keeps both of its hyphens

# --- Markdown ---------------------------------------------------------------------------------

myst_heading_anchors = 4  # links such as protocol.md#10-values work as on GitHub
myst_fence_as_directive = ["mermaid"]
# The blocks of protocol.md have titles, which are not languages that Pygments knows.
suppress_warnings = ["misc.highlighting_failure"]

# Without a network the diagrams stay readable as text, so the site loads nothing at build time.
mermaid_output_format = "raw"

# --- the API from docstrings -------------------------------------------------------------------

nitpicky = True
autodoc_member_order = "bysource"
autodoc_mock_imports = [
    "stable_baselines3",
    "opentelemetry",
    "pettingzoo",
]  # only their names are needed
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Types of other projects: their documentation is not reachable from every build machine.
nitpick_ignore_regex = [
    (r"py:.*", r"(gymnasium|pettingzoo|numpy|np|zmq|os)(\..*)?"),
    (r"py:.*", r"(collections|typing|pathlib|structlog)(\..*)?"),
    # As the annotations write them.
    (r"py:class", r"AutoresetMode|BrokerConnection|KeyPair|Space|TracerProvider"),
]
