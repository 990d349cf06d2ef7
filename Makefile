# make reproduce   every table and figure of both papers at demo scale (SCALE=… for another), in its own environment
# make test        nbdev_test on the notebooks, then pytest
# make gpu-bench   on a CUDA GPU: checks the kernels, times masks and sampling, writes data/records/speed (under 9 minutes; again: goes on)
# make verify      makes a few committed records again, drawn at random, and compares (N=4; minutes for each)
# make site        guide, notebooks, figures, ledgers and reference as pages in _site, which need no network
# make site-check  looks at all of them in Chromium: links, pictures, formulas, search, at two widths
# make lab         runs notebooks in a real JupyterLab, in Chromium (NOTEBOOKS="01_ste …"), on a copy of the repository
# make check       export, clean and README leave no difference (run before a commit)
SHELL := /bin/bash
PYTHON ?= python3
SCALE ?= demo s2s-demo
VENV := .venv
BIN := $(VENV)/bin
export SCALE
export CUDA_DEVICE_ORDER = PCI_BUS_ID
export PYTHONHASHSEED = 0
export TQDM_MININTERVAL = 5

MINUTES ?= 5
N ?= 4

.PHONY: reproduce test verify gpu-bench site site-check lab check readme lock clean

reproduce: $(VENV)/ready
	@set -f -- $$SCALE; for scale in "$${@:-}"; do \
	  $(BIN)/python -m sparsedm.files "$$scale" || $(BIN)/python -m sparsedm.experiments "$$scale" || exit; \
	done

test: $(VENV)/ready
	@$(BIN)/python tests/run.py

verify: $(VENV)/ready
	@$(BIN)/python -m sparsedm.verify --n $(N)

gpu-bench: $(VENV)/ready
	@$(BIN)/python -c "from sparsedm.gpu import probe; print(probe())" 2>&1 | tail -1; exit $${PIPESTATUS[0]}
	@mkdir -p runs/speed; $(BIN)/python -m pytest -q -rs -k 'test_gpu_ or a_gpu' tests/test_gpu.py tests/test_kernels.py; checked=$$?; \
	$(BIN)/papermill --log-level WARNING nbs/runs/speed.ipynb runs/speed/speed.ipynb -p minutes $(MINUTES); timed=$$?; \
	$(BIN)/papermill --log-level WARNING nbs/bench/masking.ipynb runs/speed/masking.ipynb && exit $$((checked + timed))

# a warning, such as a link to nowhere, is a failure
site: $(VENV)/site
	@rm -rf build/site && $(BIN)/python site/generate.py build/site/pages
	@$(BIN)/sphinx-build -q -W --keep-going -j 2 -d build/site/read -c site build/site/pages build/site/html
	@rm -rf _site && mv build/site/html _site
	@echo "open _site/index.html"

site-check: site
	@$(BIN)/python site/check.py

lab: $(VENV)/site
	@$(BIN)/python tests/lab.py $(NOTEBOOKS)

check: $(VENV)/ready
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(MAKE) --no-print-directory readme && git diff --exit-code -- nbs sparsedm README.md

# executed, as its numbers are read from records and figures
README ?= README.md
INDEX := --execute --to markdown --no-prompt --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=computed
readme: $(VENV)/ready
	@set -o pipefail; $(BIN)/jupyter nbconvert $(INDEX) --log-level ERROR --stdout nbs/index.ipynb \
	| sed -E "s|\]\(([a-z0-9_/]+\.ipynb)\)|](nbs/\1)|g; s|\]\(\.\./|](|g" | cat -s > $(README).tmp && mv $(README).tmp $(README)

# exact versions of everything, for Python 3.10 to 3.13
lock: $(VENV)/ready
	@echo torch==2.14.1 | $(BIN)/uv pip compile --quiet --universal -c - --python-version 3.10 --extra dev --extra site --no-annotate --no-header pyproject.toml -o constraints.txt

$(VENV)/ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once; downloads PyTorch)"
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'   # pip knows mirrors that uv does not
	@if [ -d .git ] && [ -z "$$CI" ]; then $(BIN)/nbdev_install_hooks; fi
	@touch $@

$(VENV)/site: $(VENV)/ready
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[site]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[site]'
	@touch $@

clean:
	rm -rf _site build/site runs data/records/{demo,smoke,s2s-demo,s2s-smoke} figures/{smoke,s2s-smoke}
