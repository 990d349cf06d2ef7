"""Do the tests see? `python tests/mutate.py ste masking [--times 10] [--seed 0] [--wide] [--only …]`

Puts one fault at a time into a module and into its notebook (in a copy of the repository), and runs the notebook, then
the tests that import the module, with `--wide` also the notebooks that import it, until one fails. What nobody sees is
printed as a line to look at: a missing test, or a change that changes nothing.
"""
import argparse, ast, json, os, random, re, shutil, signal, subprocess, sys, tempfile, time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
             ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
             ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
             ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd}
COMMUTES = re.compile(r"(.*\.)?(lcm|gcd|min|max|minimum|maximum|transpose|equal|allclose)").fullmatch   # whose order is no matter


class Fault(ast.NodeTransformer):
    "Counts places where a fault could be, and makes the one of a number."
    def __init__(self, chosen=-1): self.chosen, self.seen, self.line = chosen, 0, 0

    def here(self, node):
        self.seen += 1
        if self.seen - 1 != self.chosen: return False
        self.line = node.lineno
        return True

    def visit_BinOp(self, node): return self.operator(node)
    def visit_UnaryOp(self, node): return self.operator(node)
    def visit_BoolOp(self, node): return self.operator(node)

    def operator(self, node):
        kind = type(node.op)
        if kind in OPERATORS and self.here(node): node.op = OPERATORS[kind]()
        elif kind is ast.Not and self.here(node): return node.operand
        return self.generic_visit(node)

    def visit_Compare(self, node):
        if type(node.ops[0]) in OPERATORS and self.here(node): node.ops[0] = OPERATORS[type(node.ops[0])]()
        return self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool) and self.here(node): node.value = not node.value
        elif type(node.value) in (int, float) and self.here(node): node.value += 1
        return node

    def visit_Call(self, node):
        if node.keywords and self.here(node): node.keywords = node.keywords[:-1]
        elif len(node.args) > 1 and not COMMUTES(ast.unparse(node.func)) and self.here(node): node.args[:2] = node.args[1::-1]
        return self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant): return node   # a docstring
        return ast.copy_location(ast.Pass(), node) if self.here(node) else self.generic_visit(node)

    def visit_If(self, node):
        if self.here(node): node.test = ast.copy_location(ast.Constant(False), node.test)
        return self.generic_visit(node)


def cells_of(notebook):
    "Exported code cells, by their place."
    found = {}
    for i, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and re.match(r"#\|\s*export", source): found[i] = source
    return found


def faulty(source, number):
    "The source with the fault of a number, and a line that shows it; None if it has no such place."
    fault, tree = Fault(number), ast.parse(source)
    changed = ast.unparse(ast.fix_missing_locations(fault.visit(tree)))
    if not fault.line: return None
    before, after = (ast.unparse(ast.parse(text)).splitlines() for text in (source, changed))
    shown = next((f"{a.strip()}  →  {b.strip()}" for a, b in zip(before, after) if a != b), "a line less")
    return changed, shown


def places(source):
    fault = Fault()
    fault.visit(ast.parse(source))
    return fault.seen


def notebook_of(module):
    "The notebook that exports a module."
    for path in sorted((ROOT/"nbs").glob("*.ipynb")):
        if f"#| default_exp {module}\n" in "".join(f"{s}\n" for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
                                                   for s in "".join(c["source"]).splitlines()): return path
    sys.exit(f"no notebook exports {module!r}")


def trials(module, path, wide, only):
    "Commands, any of which may see a fault."
    importers = [p for p in sorted((ROOT/"nbs").glob("*.ipynb")) if p != path and
                 re.search(rf"from sparsedm\.{module} import", p.read_text(encoding="utf-8"))]
    imported = rf"sparsedm\.{module}\b|from sparsedm import [^\n]*\b{module}\b"
    def serves(p): return p.stem not in ("test_repo", "test_graph") and (not only or p.stem in only)
    tests = [p for p in sorted((ROOT/"tests").glob("test_*.py")) if
             serves(p) and re.search(imported, p.read_text(encoding="utf-8"))]
    notebooks = [path, *(importers if wide else ())]
    return [*(["nbdev_test", "--path", f"nbs/{nb.name}", "--n_workers", "0"] for nb in notebooks),
            *(["pytest", "-q", "-x", f"tests/{p.name}"] for p in tests)]


def passes(copy, command, patience):
    "Does it end well there, and in time? The copy's package comes first, and no compiled one is believed."
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": "", "SPARSEDM_ROOT": ""}
    command = [str(Path(sys.executable).parent/command[0]), *command[1:]]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    process = subprocess.Popen(command, cwd=copy, env=environment, **quiet)
    try: return process.wait(patience) == 0
    except subprocess.TimeoutExpired: return False
    finally: end(process)


def end(process):
    "With all that it started."
    with suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def able(copy, commands):
    "{command: seconds} of those that pass without a fault, the quickest first; the others could see none."
    seconds = {}
    for command in commands:
        began, named = time.monotonic(), next(a for a in command if "/" in a)
        if passes(copy, command, 1800): seconds[tuple(command)] = time.monotonic() - began
        print(f"{named}: {time.monotonic() - began:.0f} s" + ("" if tuple(command) in seconds else ", FAILS WITHOUT A FAULT"))
    return dict(sorted(seconds.items(), key=lambda pair: pair[1]))


def seen_by(copy, seconds):
    "What fails there, or \"\"."
    for command, usual in seconds.items():
        if not passes(copy, command, 60 + 4 * usual): return next(a for a in command if "/" in a)
    return ""


def put(copy, path, place, source):
    "Write a cell, and export it."
    target = copy/"nbs"/path.name
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][place]["source"] = f"#| export\n{source}".splitlines(keepends=True)
    target.write_text(json.dumps(notebook), encoding="utf-8")
    command = [str(Path(sys.executable).parent/"nbdev_export"), "--path", f"nbs/{path.name}"]
    subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, check=True, stdout=subprocess.DEVNULL)


def try_module(module, copy, times, seed, wide, only):
    "(seen, tried)"
    path, rng, seen = notebook_of(module), random.Random(seed), 0
    cells = cells_of(json.loads(path.read_text(encoding="utf-8")))
    every = [(place, k) for place, source in cells.items() for k in range(places(source))]
    seconds, tried = able(copy, trials(module, path, wide, only)), rng.sample(every, min(times, len(every)))
    for place, number in tried:
        source, shown = faulty(cells[place], number)
        put(copy, path, place, source)
        by = seen_by(copy, seconds)
        seen += bool(by)
        print(f"{f'seen by {by}' if by else 'NOT SEEN':40}  {shown[:200]}", flush=True)
    return seen, len(tried)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="such as ste")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wide", action="store_true", help="also the notebooks that import it")
    parser.add_argument("--only", nargs="*", default=(), help="of the tests, such as test_properties")
    given = parser.parse_args()
    for module in given.modules:
        with tempfile.TemporaryDirectory() as tmp:
            copy = Path(tmp)/"copy"
            at_the_top = {".venv", ".git", "runs", "_site", "build"}
            shutil.copytree(ROOT, copy, ignore=lambda folder, names: at_the_top & set(names) if Path(folder) == ROOT else ())
            seen, tried = try_module(module, copy, given.times, given.seed, given.wide, given.only)
        print(f"{module}: {seen} of {tried} faults were seen", flush=True)


if __name__ == "__main__": main()
