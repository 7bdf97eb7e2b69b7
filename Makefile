# Each target makes what it needs; `make test` and `make quickstart` start from a bare Python with pip.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
OUT ?= quickstart
# What to look for in the first image of RefShapes' testA.
TEXT ?= the small purple circle

.PHONY: quickstart test test-slow test-minimum lint clean

# A marker is touched last: an installation that broke off is done again.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[train]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	# CLIP's vocabulary file, for one test. The package's own dependencies are not wanted (torchvision among them).
	$(BIN)/pip install --quiet --no-deps 'open-clip-torch==3.3.0'
	touch $@

quickstart: $(VENV)/.installed
	test -d $(OUT)/data/refshapes || $(BIN)/python -m detris_peft.data.refshapes $(OUT)/data --seed 0
	$(BIN)/python examples/train_refcoco.py --config examples/configs/tiny.yaml \
		--data_root $(OUT)/data --output_dir $(OUT)/run --overwrite_output_dir
	$(BIN)/python examples/evaluate.py --checkpoint $(OUT)/run/best --data_root $(OUT)/data --dataset refshapes \
		--split val --num_workers 0 --output $(OUT)/run/val.json
	$(BIN)/python examples/evaluate.py --checkpoint $(OUT)/run/best --data_root $(OUT)/data --dataset refshapes \
		--split val --num_workers 0 --shuffle_expressions --output $(OUT)/run/val_shuffled.json
	$(BIN)/python examples/predict.py --checkpoint $(OUT)/run/best \
		--image $(OUT)/data/images/train2014/refshapes_testA_000000.jpg --text "$(TEXT)" --output $(OUT)/run/prediction.png

# One thread a worker: two of each on two cores would only get in each other's way.
test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800

# The oldest transformers and peft that pyproject.toml allows.
test-minimum:
	$(MAKE) VENV=.venv-minimum CONSTRAINTS=constraints-minimum.txt .venv-minimum/.installed-dev
	OMP_NUM_THREADS=1 .venv-minimum/bin/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-minimum $(OUT)
