# The graph: run → record → table and figures. `make reproduce` calls it; `snakemake -n` says what would run, and why.
# A run is redone only when its record is missing: changing a notebook that draws never trains again.
import sys
from sparsedm.experiments import find_run, make_run, scale_settings, table2_runs

SCALE = config.get("scale", "demo")
scale_settings(SCALE)  # an unknown scale stops here, with the known names
FIGURES = {"table2": ["md", "csv", "png"], "fig2": ["png", "pdf"], "fig4": ["png", "pdf"]}
PAPERMILL = f"OMP_NUM_THREADS={{threads}} {sys.executable} -m papermill --log-level WARNING --no-progress-bar"

RECORD, MODEL = "data/records/{scale}/{id}.json", "runs/{scale}/{id}/model.safetensors"
def path(pattern, run): return pattern.format(scale=run.scale, id=run.id)

wildcard_constraints:
    scale=r"[a-z0-9]+",

rule all:
    input:
        [path(RECORD, r) for r in table2_runs(SCALE)],
        [f"figures/{SCALE}/{name}.{ext}" for name, exts in FIGURES.items() for ext in exts],

def start(wildcards):
    run = find_run(wildcards.id)
    return [ancient(MODEL.format(scale=run.scale, id=run.start))] if run.start else []

rule run:
    input: start
    output: record=RECORD, model=MODEL
    log: "runs/{scale}/{id}/log.txt"
    params: run=lambda w: find_run(w.id)
    retries: 1   # it resumes from its checkpoint
    shell:
        PAPERMILL + " nbs/runs/train.ipynb runs/{wildcards.scale}/{wildcards.id}/train.ipynb"
        " -r scale {params.run.scale} -r method {params.run.method} -p seed {params.run.seed} > {log} 2>&1"
        " || {{ tail -n 25 {log} >&2; exit 1; }}"

for name, exts in FIGURES.items():
    rule:
        name: name
        input:
            f"nbs/paper/{name}.ipynb",
            records=lambda w: [path(RECORD, r) for r in table2_runs(w.scale)],
        output: [f"figures/{{scale}}/{name}.{ext}" for ext in exts]
        log: f"runs/{{scale}}/{name}.txt"
        params: name=name
        shell:
            PAPERMILL + " nbs/paper/{params.name}.ipynb runs/{wildcards.scale}/{params.name}.ipynb -r scale {wildcards.scale} > {log} 2>&1"
            " || {{ tail -n 25 {log} >&2; exit 1; }}"
