# The graph: run → record → tables and figures. `make reproduce` calls it through sparsedm.experiments, which writes the job it reads;
# alone, `snakemake --cores 2 --config scale=demo` makes its own. A run is done only when its record is missing.
import os, shlex, sys
from sparsedm.graph import JOB_FILE, read_job

try: JOB = read_job(config)
except (ValueError, OSError, ImportError) as e: sys.exit(f"sparsedm: {e}")   # Snakemake would show a traceback
os.environ[JOB_FILE] = JOB["job"]
SCALE, BATCHES = JOB["scale"], JOB["batches"]
EXECUTED = f"runs/{SCALE}/batches/{{name}}.ipynb"
PYTHON = "OMP_NUM_THREADS={threads} " + shlex.quote(sys.executable).replace("{", "{{").replace("}", "}}")

def executed(names): return [EXECUTED.format(name=name) for name in names]

rule all:
    input: executed(BATCHES), [f"runs/{SCALE}/drawn-{i}.txt" for i in range(len(JOB["drawing"]))]

# A batch succeeds when each of its runs has a record or an error.txt: a run that fails stops neither its batch nor the tables without it.
rule batch:
    input: lambda w: executed(BATCHES[w.name]["after"])
    output: EXECUTED
    log: f"runs/{SCALE}/batches/{{name}}.txt"
    params: runs=lambda w: " ".join(BATCHES[w.name]["runs"]), job=JOB["job"]
    resources: gpu=lambda w: BATCHES[w.name]["gpus"]
    shell:
        PYTHON + " -m papermill --log-level WARNING --no-progress-bar nbs/runs/train.ipynb {output:q}"
        f" -r scale {SCALE}" " -r runs {params.runs:q} -r job {params.job:q} > {log:q} 2>&1 || {{ tail -n 25 {log:q} >&2; exit 1; }}"

# Tables and figures are side effects: Snakemake deletes what a rule is about to make, and a figure must not vanish because a run failed.
rule draw:
    input: executed(BATCHES)
    output: f"runs/{SCALE}/drawn-{{share}}.txt"
    log: f"runs/{SCALE}/drawn-{{share}}.log"
    params: job=JOB["job"]
    shell:
        PYTHON + " -m sparsedm.graph {params.job:q} {wildcards.share} > {log:q} 2>&1 || {{ tail -n 25 {log:q} >&2; exit 1; }}"
