"""The site: `make docs` builds it, strictly, into build/docs."""

import pathlib
import re
import shutil

from sphinx.domains.python import PyXRefRole
from sphinx.util.docutils import SphinxRole, nodes

import isjax

project = "isjax"
author = "The isjax authors"
project_copyright = "2026, The isjax authors"
version = release = isjax.__version__

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
suppress_warnings = ["toc.not_readable"]  # a checkout without notebooks builds, too

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks show the outputs they were saved with

# Sphinx reads pages below this folder only, so copy the notebooks; git ignores the copy. In it,
# links to this folder are one level shorter.
here = pathlib.Path(__file__).parent
shutil.rmtree(here / "notebooks", ignore_errors=True)
(here / "notebooks").mkdir()
for notebook in (here.parent / "notebooks").glob("*.ipynb"):
    text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
    (here / "notebooks" / notebook.name).write_text(text, encoding="utf-8")

nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # code in a docstring may name objects without a page
    ("py:class", r"(?!isjax\.).*"),  # napoleon takes shapes and dtypes for classes
]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes and dtypes
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False

html_theme = "furo"
html_title = "isjax"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["isjax.css"]
html_theme_options = {
    f"{theme}_css_variables": {
        "color-brand-primary": blue,
        "color-brand-content": blue,
        "color-api-name": blue,
        "color-api-pre-name": "var(--color-foreground-secondary)",
    }
    for theme, blue in (("light", "#0060a0"), ("dark", "#6cc4f5"))
}


class Code(SphinxRole):
    """Formats text in single backticks as code, and links documented names."""

    def run(self):
        if re.fullmatch(r"[A-Za-z_][\w.]*", self.text):
            arguments = (self.rawtext, self.text, self.lineno, self.inliner)
            return PyXRefRole()("py:obj", *arguments)
        return [nodes.literal(self.rawtext, self.text)], []


def resolve(app, env, node, contnode):
    """Links `scorers.loss` to isjax.scorers.loss, and `Draw` to isjax.base.Draw."""
    if node["refdomain"] == "py" and node["reftype"] == "obj":
        domain, page = env.domains["py"], node["refdoc"]
        for place in ("isjax", "isjax.base"):
            target = f"{place}.{node['reftarget']}"
            found = domain.resolve_xref(env, page, app.builder, "obj", target, node, contnode)
            if found is not None:
                return found
    return None


def mark_code(app, what, name, member, options, lines):
    """Marks indented text in a module's docstring as code."""
    if what != "module":
        return
    for i in range(len(lines) - 1, 1, -1):
        if lines[i].startswith("    ") and not lines[i - 1] and lines[i - 2][:1].strip():
            lines[i:i] = ["::", ""]


def skip(app, what, name, member, skip, options):
    """Skips the fields of a NamedTuple, which its docstring describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def sign(app, what, name, member, options, signature, returns):
    """Removes two arguments that Flax adds to every module."""
    if signature and "parent=" in signature:
        signature = re.sub(r"(, )?parent=.*\)$", ")", signature)
    return signature, returns


def setup(app):
    """Registers the functions above with Sphinx."""
    app.add_role("code-or-link", Code())
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", sign)


default_role = "code-or-link"
