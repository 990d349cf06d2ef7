"Sphinx configuration. All that a page needs is in _site: no CDN, no web font, no script that draws formulas."
import re
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project, author = "sparsedm", "the sparsedm authors"
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "fieldlist"]
myst_heading_anchors = 4
nb_execution_mode = "off"   # notebooks are committed as they ran
nb_merge_streams = True
html_theme = "furo"
html_title = "sparsedm"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_math_renderer = "mathml"   # browsers draw it themselves
python_maximum_signature_line_length = 80
smartquotes_action = "D"   # dashes only: quotation marks are those of the notebook


# what would be drawn wrong otherwise
MENDED = ((r"\\(math[a-z]+) ([A-Za-z])", r"\\\1{\2}"),                          # a letter, not in its alphabet
          (r"\\[lr]Vert\b", r"\\|"),                                         # bars of two sizes
          (r"(\\[bB]ig[lr]?(?:\\.|[^\\]))(?=[\^_])", r"{\1}"))   # a small bracket, if it has an exponent


def mathml(tex, display):
    for old, new in MENDED: tex = re.sub(old, new, tex)
    return convert(tex, display=display).replace('"negativethinmathspace"', '"-0.167em"')


def inline(self, node):
    self.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def block(self, node):
    self.body.append(f'<div class="wide math">{mathml(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app): app.add_html_math_renderer("mathml", (inline, None), (block, None))
