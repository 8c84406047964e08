# Nothing but calls. `make demo` and `make test` set up everything they need in .venv on a machine with Python 3.11+, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# where pip takes torch from; for CUDA leave it empty or name another index
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
OUT ?= demo-out

.PHONY: demo demo-s3 test lint bench docs clean

demo: $(VENV)/ready
	$(BIN)/python -m vemray.demo $(OUT)

demo-s3: $(VENV)/ready
	deploy/local/with-s3.sh $(BIN)/python -m vemray.demo s3://vemray-demo/$(OUT)

test: $(VENV)/ready
	$(BIN)/python -m pytest -q

lint: $(VENV)/ready
	$(BIN)/ruff check vemray tests bench
	$(BIN)/ruff format --check vemray tests bench
	$(BIN)/lint-imports

bench: $(VENV)/ready
	$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/ready
	$(BIN)/python docs/generate.py

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) deploy/local/setup_venv.py $(VENV) "$(TORCH_INDEX)"

clean:
	rm -rf $(VENV) demo-out
