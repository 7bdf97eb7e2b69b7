# Each target installs what it needs: `make test` and `make quickstart` start from a bare Python with pip.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
OUT ?= quickstart
# Expression for the first testA image of RefShapes.
TEXT ?= the small purple circle

.PHONY: quickstart quickstart-data quickstart-bytecode quickstart-shuffled quickstart-predict test test-slow fuzz test-minimum lint docs clean

# The marker is touched last, so an interrupted installation is repeated. The newest pip resolves the dependencies in
# less than half the time of the one that Python 3.11 contains. `--no-compile` saves more: `quickstart` imports a
# quarter of the installed files, and caches the bytecode of these; see `quickstart-bytecode`.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) torch --editable '.[train]'
	touch $@

# The tests start many processes, so all files are compiled here, on all cores. As with pip, files that cannot be compiled
# are ignored: some packages contain templates.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable '.[dev]'
	# One test needs CLIP's vocabulary file from this package, but not its dependencies (e.g. torchvision).
	$(BIN)/pip install --quiet --no-compile --no-deps 'open-clip-torch==3.3.0'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[docs]'
	touch $@

# Resumes training after an interruption; a finished run is not trained again (`make clean` deletes it).
# An empty PYTHONDONTWRITEBYTECODE lets Python cache bytecode also where the environment forbids it; see `.installed`.
quickstart: export PYTHONDONTWRITEBYTECODE =
quickstart: $(VENV)/.installed
	$(MAKE) --no-print-directory --jobs 2 quickstart-data quickstart-bytecode
	$(BIN)/python examples/train_refcoco.py --config examples/configs/tiny.yaml \
		--data_root $(OUT)/data --output_dir $(OUT)/run --resume latest
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs 2 quickstart-shuffled quickstart-predict

# The bytecode of what training imports is cached on the other core meanwhile.
quickstart-data:
	test -d $(OUT)/data/refshapes || $(BIN)/python -m detris_peft.data.refshapes $(OUT)/data --seed 0
quickstart-bytecode:
	$(BIN)/python -c 'from detris_peft.training import train'

# At the same time: most of what they do is to import libraries, on one core each. Training has evaluated the checkpoint;
# with the sentences of other images, it should be much worse.
quickstart-shuffled:
	$(BIN)/python examples/evaluate_checkpoint.py --checkpoint $(OUT)/run/best --data_root $(OUT)/data \
		--dataset refshapes --split val --num_workers 0 --overwrite --shuffle_expressions \
		--output $(OUT)/run/val_shuffled.json
quickstart-predict:
	$(BIN)/python examples/predict.py --checkpoint $(OUT)/run/best \
		--image $(OUT)/data/images/train2014/refshapes_testA_000000.jpg --text "$(TEXT)" \
		--output $(OUT)/run/prediction.png --overwrite

# One thread per pytest worker, so that two workers do not compete for two cores. The tests with the longest runs are the
# last ones, so a worker that is done takes over tests of the other.
test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800

# Readers of untrusted files, for at most five minutes.
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --seconds 230

# The oldest torch, transformers and peft that pyproject.toml allows.
test-minimum:
	$(MAKE) VENV=.venv-minimum CONSTRAINTS=constraints-minimum.txt .venv-minimum/.installed-dev
	OMP_NUM_THREADS=1 .venv-minimum/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# The HTML documentation in docs/_build; warnings are errors.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build

clean:
	rm -rf $(VENV) .venv-minimum $(OUT) docs/_build
