"""Do the tests see? `python tests/mutate.py ste [--times 10] [--seed 0] [--wide]`

Puts one fault at a time into a module and into its notebook (in a copy of the repository), and runs the notebook, then
the tests that name the module, with `--wide` also the notebooks that import it, until one fails. What nobody sees is
printed as a line to look at: a missing test, or a change that changes nothing.
"""
import argparse, ast, json, os, random, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
             ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
             ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
             ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd}


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
        elif type(node.value) in (int, float) and self.here(node): node.value = node.value + 1 if node.value != 1 else 2.5
        return node

    def visit_Call(self, node):
        if node.keywords and self.here(node): node.keywords = node.keywords[:-1]
        elif len(node.args) > 1 and self.here(node): node.args[:2] = node.args[1::-1]
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


def trials(module, path, wide):
    "Commands, the quickest first; the first that fails has seen the fault."
    importers = [p for p in sorted((ROOT/"nbs").glob("*.ipynb")) if p != path and
                 re.search(rf"from sparsedm\.{module} import", p.read_text(encoding="utf-8"))]
    tests = [p for p in sorted((ROOT/"tests").glob("test_*.py")) if
             p.stem not in ("test_repo", "test_graph") and re.search(rf"\b{module}\b", p.read_text(encoding="utf-8"))]
    for nb in [path, *(importers if wide else ())]:
        yield ["nbdev_test", "--path", f"nbs/{nb.name}", "--n_workers", "0"]
    if tests: yield ["pytest", "-q", "-x", *(f"tests/{p.name}" for p in tests)]


def seen_by(copy, module, path, wide, patience):
    "What fails there, or \"\"."
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for command in trials(module, path, wide):
        command = [str(Path(sys.executable).parent/command[0]), *command[1:]]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try: code = subprocess.run(command, cwd=copy, env=environment, timeout=patience, **quiet).returncode
        except subprocess.TimeoutExpired: return "time"
        if code: return Path(command[0]).name + " " + next((a for a in command if "/" in a and "." in a[-6:]), "")
    return ""


def put(copy, module, path, place, source):
    "Write a cell, and export it."
    target = copy/"nbs"/path.name
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][place]["source"] = f"#| export\n{source}".splitlines(keepends=True)
    target.write_text(json.dumps(notebook), encoding="utf-8")
    subprocess.run([str(Path(sys.executable).parent/"nbdev_export"), "--path", f"nbs/{path.name}"], cwd=copy, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="such as ste")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wide", action="store_true", help="also the notebooks that import it")
    parser.add_argument("--patience", type=int, default=600, help="seconds for each command")
    given = parser.parse_args()
    path, rng, missed = notebook_of(given.module), random.Random(given.seed), 0
    cells = cells_of(json.loads(path.read_text(encoding="utf-8")))
    every = [(place, k) for place, source in cells.items() for k in range(places(source))]
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/"copy"
        left_out = shutil.ignore_patterns(".venv", ".git", "runs", "_site", "build", "records")
        shutil.copytree(ROOT, copy, ignore=left_out)
        for place, number in rng.sample(every, min(given.times, len(every))):
            source, shown = faulty(cells[place], number)
            put(copy, given.module, path, place, source)
            seen = seen_by(copy, given.module, path, given.wide, given.patience)
            missed += not seen
            print(f"{'seen' if seen else 'NOT SEEN':8}  {shown[:150]}", flush=True)
    print(f"{given.module}: {given.times - missed} of {given.times} faults were seen")


if __name__ == "__main__": main()
