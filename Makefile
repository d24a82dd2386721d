# One virtual environment for everything; `make pretrain` and `make test` are the two commands of the README.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: pretrain explore lab figures test readme clean-venv

$(READY): setup.py settings.ini
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(READY)

pretrain: $(READY)
	mkdir -p runs
	$(BIN)/papermill --log-output --no-progress-bar -k python3 nbs/pretrain.ipynb runs/pretrain.ipynb $(ARGS)

# The explorer as a page of its own (Voila), on this machine only, behind a token: nothing is asked of any other host. A closed page's kernel ends within IDLE + CULL seconds.
# One upload may have UPLOAD_MB (Jupyter's own limit is 10). Further options: make explore EXPLORE='--port=8866 --no-browser'
UPLOAD_MB = 200
IDLE      = 120
CULL      = 30
UPLOAD    = {"websocket_max_message_size": $(UPLOAD_MB)000000}
explore: $(READY)
	JUPYTER_PATH=nbs/explore_page VASOMIM_UPLOAD_MB=$(UPLOAD_MB) $(BIN)/voila nbs/explore.ipynb --template=explore --token --Voila.ip=localhost --Voila.tornado_settings='$(UPLOAD)' \
	    --VoilaConfiguration.extension_allowlist='["@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8"]' --MappingKernelManager.cull_idle_timeout=$(IDLE) --MappingKernelManager.cull_interval=$(CULL) $(EXPLORE)

# The same in JupyterLab, with its code.
lab: $(READY)
	VASOMIM_UPLOAD_MB=$(UPLOAD_MB) $(BIN)/jupyter lab nbs/explore.ipynb --ServerApp.tornado_settings='$(UPLOAD)' $(LAB)

# draws every figure that results exist for; SCALE=smoke|small|paper
SCALE ?= small
figures: $(READY)
	$(BIN)/vasomim study draw nbs/figures/*.ipynb --scale $(SCALE)

test: $(READY)
	$(BIN)/python tests/run_all.py

# README.md is nbs/index.ipynb
readme: $(READY)
	$(BIN)/python tests/make_readme.py
