# The graph: run → record → table and figures. `make reproduce` calls it; `python -m sparsedm.experiments demo --dry-run` says what would run, and why.
# A run is done only when its record is missing: changing a notebook that draws never trains again.
import json, sys
from pathlib import Path
from sparsedm.experiments import figures_of, make_plan, record_path, runs_needed, runs_of, scale_settings

SCALE = config.get("scale", "demo")
scale_settings(SCALE)  # an unknown scale stops here, with the known names
# The plan deals missing runs out in batches. It is kept in a file, so that a job started on another machine reads the same one.
PLAN = json.loads(Path(config["plan"]).read_text()) if "plan" in config else make_plan(runs_of(SCALE))
BATCHES = {b["name"]: b for b in PLAN}
BATCH_OF = {run: b["name"] for b in PLAN for run in b["runs"]}
EXECUTED = "runs/{scale}/batches/{name}.ipynb"
PAPERMILL = f"OMP_NUM_THREADS={{threads}} {sys.executable} -m papermill --log-level WARNING --no-progress-bar"

wildcard_constraints:
    scale=r"[a-z0-9-]+",

rule all:
    input: [f"runs/{SCALE}/{name}.ipynb" for name in figures_of(SCALE)]

# A batch succeeds when each of its runs has a record or an error.txt: a run that fails stops neither its batch nor the figures without it.
rule batch:
    input: lambda w: [EXECUTED.format(scale=w.scale, name=b) for b in BATCHES[w.name]["after"]]
    output: EXECUTED
    log: "runs/{scale}/batches/{name}.txt"
    params: runs=lambda w: " ".join(BATCHES[w.name]["runs"])
    retries: 1   # if its process was killed; finished runs are not repeated
    shell:
        PAPERMILL + " nbs/runs/train.ipynb {output} -r scale {wildcards.scale} -r runs '{params.runs}' > {log} 2>&1"
        " || {{ tail -n 25 {log} >&2; exit 1; }}"

def records(name):
    "The records that exist, and the batches that will make the others."
    needed = runs_needed(SCALE, name)
    batches = {BATCH_OF[r.id] for r in needed if r.id in BATCH_OF}
    return [record_path(r) for r in needed if r.id not in BATCH_OF and record_path(r).is_file()] + [EXECUTED.format(scale=SCALE, name=b) for b in sorted(batches)]

# Their figures and tables are side effects: Snakemake deletes what a rule is about to make, and a figure must not vanish because a run failed.
for name in figures_of(SCALE):
    rule:
        name: name
        input: f"nbs/paper/{name}.ipynb", records(name)
        output: f"runs/{SCALE}/{name}.ipynb"
        log: f"runs/{SCALE}/{name}.txt"
        params: name=name, scale=SCALE
        shell:
            PAPERMILL + " nbs/paper/{params.name}.ipynb {output} -r scale {params.scale} -p build False > {log} 2>&1"
            " || {{ tail -n 25 {log} >&2; exit 1; }}"
