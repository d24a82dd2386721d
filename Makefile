# One virtual environment for everything; `make pretrain` and `make test` are the two commands of the README.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: pretrain explore figures test readme clean-venv

$(READY): setup.py settings.ini
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(READY)

pretrain: $(READY)
	mkdir -p runs
	$(BIN)/papermill --log-output --no-progress-bar -k python3 nbs/pretrain.ipynb runs/pretrain.ipynb $(ARGS)

explore: $(READY)
	$(BIN)/jupyter lab nbs/explore.ipynb

# draws every figure that results exist for; SCALE=smoke|small|paper
SCALE ?= small
figures: $(READY)
	$(BIN)/vasomim study draw nbs/figures/*.ipynb --scale $(SCALE)

test: $(READY)
	$(BIN)/python tests/run_all.py

# README.md is nbs/index.ipynb
readme: $(READY)
	$(BIN)/python tests/make_readme.py
