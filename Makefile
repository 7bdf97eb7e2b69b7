# Each target makes what it needs; `make test` and `make quickstart` start from a bare Python with pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= quickstart

.PHONY: quickstart test test-slow lint clean

# The marker is touched last: an installation that broke off is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# CLIP's vocabulary file, for one test. The package's own dependencies are not wanted (torchvision among them).
	$(BIN)/pip install --quiet --no-deps 'open-clip-torch==3.3.0'
	touch $@

quickstart: $(VENV)/.installed
	test -d $(OUT)/data/refshapes || $(BIN)/python -m detris_peft.data.shapes $(OUT)/data --seed 0
	$(BIN)/python examples/train_refcoco.py --config examples/configs/tiny.yaml \
		--data_root $(OUT)/data --output_dir $(OUT)/run
	$(BIN)/python examples/evaluate.py --checkpoint $(OUT)/run/best --data_root $(OUT)/data --dataset refshapes \
		--split val --num_workers 0 --output $(OUT)/run/val.json
	$(BIN)/python examples/evaluate.py --checkpoint $(OUT)/run/best --data_root $(OUT)/data --dataset refshapes \
		--split val --num_workers 0 --shuffle_expressions --output $(OUT)/run/val_shuffled.json
	$(BIN)/python examples/predict.py --checkpoint $(OUT)/run/best \
		--image $(OUT)/data/images/train2014/refshapes_testA_000000.jpg --text "$(TEXT)" --output $(OUT)/run/prediction.png

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow --timeout 1800

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(OUT)
