"""The pages that Sphinx reads, from what is committed: README, executed notebooks, figures, ledgers, docstrings.

python site/generate.py FOLDER"""
import ast, csv, importlib, inspect, json, re, shutil, sys, textwrap
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from fastcore.docments import docments
from latex2mathml.converter import convert
import sparsedm
from sparsedm.ledger import ledger_html

ROOT, OUT = Path(__file__).resolve().parent.parent, Path(sys.argv[1])
NOTEBOOKS = [p for p in sorted((ROOT/"nbs").rglob("*.ipynb"))   # the index is the README
             if ".ipynb_checkpoints" not in p.parts and p.stem != "index"]


def write(path, text):
    (OUT/path).parent.mkdir(parents=True, exist_ok=True)
    (OUT/path).write_text(text)


def copy(path):
    (OUT/path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT/path, OUT/path)


def plain(markdown):
    "Without the marks: for a title, or the text of a picture."
    text = re.sub(r"\$+([^$]+)\$+", lambda m: unescape(re.sub("<[^>]+>", "", convert(m[1]))), markdown)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[*`]|^#+ |^[-|>] ", "", text, flags=re.M).split())


def source(cell): return "".join(cell["source"])


def about(path):
    "Title and summary of a notebook: its first heading, and the quotation under it."
    first = source(json.loads(path.read_text())["cells"][0])
    title, summary = (re.search(rf"^{mark} (.+)", first, re.M) for mark in ("#", ">"))
    return plain(title[1]), plain(summary[1])


ABOUT = {p: about(p) for p in NOTEBOOKS}
FIGURES = {p.stem: p for p in NOTEBOOKS if "paper" in p.parts}


# ---- notebooks

def links(text, folder):
    "Jupyter's anchors become Sphinx's; what leads to a folder leads to its first notebook."
    def one(m):
        inside = sorted((folder/m[1]).glob("*.ipynb")) if not m[2] else []
        return f"]({m[1]}/{inside[0].name})" if inside else f"]({m[1]}{(m[2] or '').lower()})"
    return re.sub(r"\]\(([^():#]*)(#[^)]+)?\)", one, text)


def notebook(path):
    "With a text for each picture, from the heading and the sentences before it, and without cells that nbdev hides."
    nb = json.loads(path.read_text())
    heading, text = "", ". ".join(ABOUT[path])
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = links(source(cell), path.parent)
            heading, said = ([heading] + re.findall(r"^##+ (.+)", cell["source"], re.M))[-1], cell["source"]
            text = re.sub(r"^#+ .+|^ *\|.*|```[\s\S]*?```", "", said, flags=re.M).strip().split("\n\n")[-1] or text
        elif any("image/png" in o.get("data", {}) for o in cell["outputs"]):
            shown = [*ABOUT[path]] if path.stem in FIGURES else [ABOUT[path][0], plain(heading)]
            alt = textwrap.shorten(": ".join(filter(None, [*shown, plain(text)])), 400, placeholder=" …")
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        elif re.match(r"#\| *(hide|default_exp)\b", source(cell)): cell["metadata"]["tags"] = ["remove-cell"]
    write(path.relative_to(ROOT), json.dumps(nb, ensure_ascii=False))


# ---- figures and ledgers

def origin(path):
    "The notebook that draws a file of figures/."
    if path.stem in FIGURES: return FIGURES[path.stem]
    sys.exit(f"{path} has no notebook in nbs/paper; delete it, or name it after the one that draws it")

def alt_texts():
    "What the README says to its pictures, if it shows them."
    return {path: alt for alt, path in re.findall(r"!\[([^]]+)\]\((figures/[^)]+)\)", (ROOT/"README.md").read_text())}


def gallery(folder):
    "A page of all pictures of a scale, each with its notebook, table and data."
    lines, known = [f"# Figures at scale {folder.name}"], alt_texts()
    for png in sorted(folder.glob("*.png")):
        title, summary = ABOUT[origin(png)]
        path, own = png.relative_to(ROOT).as_posix(), origin(png).relative_to(ROOT).as_posix()
        more = [f"[notebook](/{own})"]
        copy(path)
        if png.with_suffix(".md").exists(): more.append(f"[table]({png.stem}.md)")
        for other in (".csv", ".pdf"):
            if png.with_suffix(other).exists():
                copy(Path(path).with_suffix(other))
                more.append(f"{{download}}`{other[1:]} <{png.stem}{other}>`")
        alt = known.get(path, f"{title}: {summary}").replace("[", "(").replace("]", ")")
        lines += [f"## {title}", summary, f"![{alt}]({png.name})", " · ".join(more)]
    tables = [p.stem for p in sorted(folder.glob("*.md")) if "claims" not in p.stem]
    write(folder.relative_to(ROOT)/"index.md", "\n\n".join([*lines, toctree("Tables", tables)]))


def table(path):
    "A committed table under the title of its notebook."
    own = origin(path)
    link = f"From [{own.stem}](/{own.relative_to(ROOT).as_posix()}), scale {path.parent.name}."
    write(path.relative_to(ROOT), f"# {ABOUT[own][0]} ({path.parent.name})\n\n{link}\n\n{path.read_text()}")


def ledger(path):
    "A committed ledger, shown as its notebook shows it."
    rows = list(csv.DictReader(path.with_suffix(".csv").open(encoding="utf-8", newline="")))
    ours = {re.match(r"Ours \(([\w-]+)", k)[1]: k for k in rows[0] if k.startswith("Ours")}
    answers = {s: [SimpleNamespace(text=r[k], verdict=r[f"Verdict ({s})"]) for r in rows] for s, k in ours.items()}
    claims = [SimpleNamespace(where=r["Where"], claim=r["Claim"], paper=r["Paper"]) for r in rows]
    shown = SimpleNamespace(claims=claims, data=ours, answers=answers, basis=lambda k: rows[k]["Tested on"],
                            why=lambda k: rows[k]["Why not, where known"])
    own = origin(path)
    title, summary = ABOUT[own]
    note = path.read_text().rsplit("\n\n", 1)[-1].strip()
    link = f"From [{own.stem}](/{own.relative_to(ROOT).as_posix()}). A long answer unfolds."
    inside = f'<div class="wide ledger">{ledger_html(shown)}</div>'
    write(path.relative_to(ROOT), "\n\n".join([f"# {title}", f"> {summary}", link, inside, note]))


# ---- the interface

def message(raised):
    "Type and text of an exception that is raised; … stands for what is filled in."
    if not isinstance(raised, ast.Call) or not isinstance(raised.func, ast.Name): return None
    parts = [v for a in raised.args for v in (a.values if isinstance(a, ast.JoinedStr) else [a])]
    text = "".join(p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "…" for p in parts)
    return raised.func.id, text


def errors(node, known, seen):
    "(type, text) of what a function raises, itself or by functions of its module."
    for n in ast.walk(node):
        if isinstance(n, ast.Raise) and n.exc and (found := message(n.exc)): yield found
        called = n.func.id if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) else None
        if called in known and called not in seen:
            seen.add(called)
            yield from errors(known[called], known, seen)


def text(said): # a docstring or comment, as Markdown
    parts = re.split(r"(`[^`]*`)", inspect.cleandoc(said or ""))
    return "".join(p if p.startswith("`") else re.sub(r"([\\*_$\[\]<|#])", r"\\\1", p) for p in parts)


def signature(node):
    "As it is written, without `self`."
    own = [node] if isinstance(node, ast.FunctionDef) else methods(node)
    inner = next((f for f in own if f is node or f.name == "__init__"), None)
    if inner is None: return ""
    args = re.sub(r"^(self|cls)(, )?", "", ast.unparse(inner.args))
    return f"({args})" + (f" -> {ast.unparse(inner.returns)}" if inner.returns else "")


def methods(node): return [f for f in node.body if isinstance(f, ast.FunctionDef)]


def entry(kind, name, node, thing, known, fence):
    "One function, class or method."
    lines = [f"{fence}{{py:{kind}}} {name}{signature(node)}", "", text(ast.get_docstring(node)), ""]
    try: said = docments(thing, full=True)
    except (TypeError, ValueError, AttributeError): said = {}
    for arg, d in said.items():
        if not d["docment"]: continue
        lines.append((":returns: " if arg == "return" else f":param {arg}: ") + text(" ".join(d["docment"].split())))
    raised = dict.fromkeys(errors(node, known, set())) if kind != "class" else ()
    lines += [f":raises {kind}: {text(why)}" for kind, why in raised]
    if kind == "class":
        public = [f for f in methods(node) if not f.name.startswith("_") and ast.get_docstring(f)]
        for f in public: lines += ["", *entry("method", f.name, f, getattr(thing, f.name), known, fence[1:])]
    return [*lines, fence, ""]


def interface(path):
    "A page for a module: all that it exports, in its order."
    code = path.read_text()
    tree, name = ast.parse(code), ".".join(path.relative_to(ROOT).with_suffix("").parts)
    module = importlib.import_module(name)
    nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    origin = (path.parent/re.search(r"File to edit: (\S+\.ipynb)", code)[1]).resolve().relative_to(ROOT).as_posix()
    source = f"Source: [{Path(origin).stem}](/{origin})"
    head = [f"# {name}", text(ast.get_docstring(tree)), source, f":::{{py:module}} {name}\n:::"]
    lines = []
    for public in module.__all__:
        thing = getattr(module, public)
        if public in nodes:
            kind = "class" if isinstance(nodes[public], ast.ClassDef) else "function"
            lines += entry(kind, public, nodes[public], thing, nodes, "::::")
            continue
        value = repr(thing) if "<" not in repr(thing) else type(thing).__name__   # no addresses, no paths
        value = textwrap.shorten(value, 200, placeholder=" …")
        lines += [f":::{{py:data}} {public}", "", f"`{value}`", ":::", ""]
    write(f"api/{name}.md", "\n\n".join(head) + "\n\n" + "\n".join(lines))


def entrance():
    "What `from sparsedm import …` gives."
    names = [f"- {{py:obj}}`~sparsedm.{module}.{name}`" for name, module in sparsedm._HERE.items()]
    write("api/sparsedm.md", "\n".join(["# sparsedm", "", sparsedm.__doc__, "", *names]))


# ---- the start page and the order of all

def toctree(caption, pages): # pages: path, or (title, path)
    lines = [p if isinstance(p, str) else f"{p[0]} <{p[1]}>" for p in pages]
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```"])


def notebooks(under):
    paths = [p for p in NOTEBOOKS if p.match(under)]
    return [(f"{p.stem.split('_')[0]} {ABOUT[p][0]}" if p.parent.name == "nbs" else ABOUT[p][0],
             p.relative_to(ROOT).with_suffix("").as_posix()) for p in paths]


def start(scales, ledgers, modules):
    "The README, and the order of all pages."
    readme = (ROOT/"README.md").read_text()
    floors = re.findall(r"\*\*(\d)x\*\* ([^,.]+)", readme)
    trees = [toctree(f"{n}x · {what}", notebooks(f"nbs/{n}*.ipynb")) for n, what in floors]
    trees += [toctree("SparseDM: tables, figures", notebooks("paper/sparsedm/*.ipynb")),
              toctree("Sparse-to-Sparse: tables, figures", notebooks("paper/s2s/*.ipynb")),
              toctree("Runs and timings", notebooks("runs/*.ipynb") + notebooks("bench/*.ipynb"))]
    write("index.md", "\n\n".join([readme, *trees, toctree("Figures", scales), toctree("Claims and verdicts", ledgers),
                                   toctree("Reference", modules)]))


def main():
    for path in NOTEBOOKS: notebook(path)
    copy("CITATION.cff")
    folders = sorted(p for p in (ROOT/"figures").iterdir() if p.is_dir())
    for folder in folders: gallery(folder)
    tables = sorted((ROOT/"figures").glob("*/*.md"))
    for path in tables: (ledger if "claims" in path.stem else table)(path)
    modules = [p for p in sorted((ROOT/"sparsedm").rglob("*.py")) if "AUTOGENERATED" in p.read_text()[:500]]
    modules = [p for p in modules if p.name != "_modidx.py"]
    for path in modules: interface(path)
    entrance()
    page = lambda p: p.relative_to(ROOT).with_suffix("").as_posix()
    ledgers = [p for p in tables if "claims" in p.stem]
    start([(f.name, f"figures/{f.name}/index") for f in folders], [page(p) for p in ledgers],
          ["api/sparsedm"] + [f"api/{'.'.join(p.relative_to(ROOT).with_suffix('').parts)}" for p in modules])


main()
