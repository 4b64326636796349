# `make demo` and `make test` do everything on a fresh machine with Python 3.11, gcc and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Two processes of one thread each: with two threads they wait for each other. Each takes half of
# the files; the one that is done first takes over tests from the end of the other's.
PYTEST = OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal
OPS := $(CURDIR)/.ops
DEMO := work_dirs/demo
CONFIG := nf-resnet_digits.py

SOURCES := $(shell find nf_plugins configs tools requirements -type f -not -name '*.pyc') \
	setup.py MANIFEST.in model-index.yml README.md
# Idle threads sleep: on a busy machine waiting ones would cost most of the time.
export OMP_WAIT_POLICY := PASSIVE
# Of mmcv-lite, at each import.
export PYTHONWARNINGS := ignore:Fail to import:UserWarning
export PATH := $(BIN):$(PATH)

.PHONY: help setup demo test test-all check compat lint docs long-run format spp-figure \
	docs-figures study bench bench-accuracy gpu ops clean fashion-mnist
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.requirements: requirements/constraints.txt $(wildcard requirements/*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c requirements/constraints.txt setuptools wheel
	$(BIN)/python -m pip install -q -c requirements/constraints.txt $(foreach f,runtime \
		mminstall digits report hub export video tests tools docs,-r requirements/$(f).txt)
	$(BIN)/python -m pip install -q -c requirements/constraints.txt --no-deps \
		--no-build-isolation -r requirements/downstream.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt --no-deps --upgrade \
		--target $(VENV)/tools -r requirements/tools_apart.txt
	touch $@

# A regular wheel: mim does not find configs by name in an editable install.
$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	rm -rf build
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --force-reinstall .
	touch $@

setup: $(VENV)/.installed  ## make .venv with pinned requirements and the package

demo: setup  ## train, test, inspect and film an NF-ResNet on the embedded digits
	rm -rf $(DEMO)
	mim train nfplugins $(CONFIG) --gpus 0 --work-dir $(DEMO)/train
	mim test nfplugins $(CONFIG) --gpus 0 --work-dir $(DEMO)/test \
		--checkpoint $$(cat $(DEMO)/train/last_checkpoint) \
		--out $(DEMO)/metrics.json --out-item metrics
	mim run nfplugins spp_analysis $(CONFIG) --out-dir $(DEMO)/spp_init \
		--cfg-options model.backbone.skipinit=1.0
	mim run nfplugins spp_analysis $(CONFIG) $$(cat $(DEMO)/train/last_checkpoint) \
		--out-dir $(DEMO)/spp_trained
	for form in gif mp4 html; do \
		mim run nfplugins spp_video $(DEMO)/train --out $(DEMO)/training.$$form || exit; \
	done
	@echo
	@echo "Test accuracy: $$(python -c 'import json, sys; print("%.2f %%" % \
		json.load(open(sys.argv[1]))["accuracy/top1"])' $(DEMO)/metrics.json)"
	@echo "Signal propagation at initialisation: $(CURDIR)/$(DEMO)/spp_init/spp.png"
	@echo "Signal propagation after training:    $(CURDIR)/$(DEMO)/spp_trained/spp.png"
	@echo "Signal propagation while training:    $(CURDIR)/$(DEMO)/training.html, .gif and .mp4"

test: setup lint docs  ## the tests, and a part of the longest tables; detectors where `make ops` was run
	$(PYTEST) -m "not exhaustive" --durations=25
	if [ -e $(OPS)/.built ]; then PYTHONPATH=$(OPS) $(PYTEST) tests/test_downstream; \
		else echo "Detectors are not trained: 'make ops' builds mmcv's compiled operators."; fi

test-all: setup lint docs  ## the tests of `make test`, and the rest of its long tables
	$(PYTEST) --durations=25

check: setup lint  ## the quick tests
	$(PYTEST) -m "not slow and not versions"

compat:  ## the quick tests and some more on other versions of the libraries: STACKS="original oldest" for some
	$(PYTHON) benchmarks/stacks.py $(STACKS)

lint: setup  ## ruff, and mypy over the package
	ruff check .
	ruff format --check .
	mypy

docs: setup  ## the pages and the reference as HTML, in work_dirs/docs
	python -m sphinx -q -W docs work_dirs/docs

long-run: setup  ## 2,000 iterations with an analysis at every tenth: is anything left behind?
	NF_PLUGINS_LONG_RUN=2000 python -m pytest -s tests/test_engine/test_long_run.py

format: setup  ## let ruff format and mend
	ruff check --fix .
	ruff format .

spp-figure: setup  ## the figure of the README
	python tools/spp_analysis.py configs/nf_resnet/nf-resnet_digits.py \
		--compare configs/baselines/resnet-bn_digits.py configs/baselines/resnet-plain_digits.py \
		--label "NF-ResNet" "ResNet with batch norm" "the same without norms" \
		--cfg-options model.backbone.skipinit=1.0 --batch-size 64 --out-dir work_dirs/spp_figure
	mkdir -p docs/images
	cp work_dirs/spp_figure/spp.png docs/images/spp_digits.png

docs-figures: setup  ## the figures of docs/reading_spps.md
	MM=$$(python -c 'import mmpretrain; print(mmpretrain.__path__[0])')/.mim/configs \
	IMAGES=$$(python -c 'import sklearn.datasets; print(sklearn.datasets.__path__[0])')/images \
		python docs/spp_figures.py docs/reading_spps.md
	python docs/fault_figures.py

FASHION_MNIST := /usr/share/datasets/fashion-mnist
fashion-mnist:  ## unpack the Debian package dataset-fashion-mnist into data/fashion_mnist
	@test -d $(FASHION_MNIST) || { echo "error: no $(FASHION_MNIST): install the Debian package \
	dataset-fashion-mnist; without it, mmpretrain downloads the data for the configs" >&2; exit 2; }
	mkdir -p data/fashion_mnist
	for name in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do \
		file=data/fashion_mnist/$$name-ubyte; \
		gunzip -c $(FASHION_MNIST)/$$name-ubyte.gz > $$file.part && mv $$file.part $$file || exit; \
	done

# mmcv's compiled operators, which detection needs, stay apart from .venv: PYTHONPATH=.ops puts them
# before it. All files include one header of torch, which is compiled once, for time. The compiler
# takes it only for files with the same flags.
OPS_CSRC = mmcv/ops/csrc/common
OPS_FLAGS = -g0 -O2 -DNDEBUG -fPIC
ops: $(OPS)/.built  ## build mmcv's compiled operators into .ops, for detection: some minutes
$(OPS)/.built: requirements/ops.txt $(VENV)/.requirements
	rm -rf $(OPS) && mkdir $(OPS)
	pip download -q -c requirements/constraints.txt --no-cache-dir --no-deps \
		--no-build-isolation --no-binary onedl-mmcv -d $(OPS)/source onedl-mmcv
	cd $(OPS)/source && tar xzf *.tar.gz --strip-components=1
	cd $(OPS)/source && g++ $(OPS_FLAGS) -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H \
		-DTORCH_EXTENSION_NAME=_ext -I$(OPS)/source/$(OPS_CSRC) \
		$$(python -c 'import torch.utils.cpp_extension as extension; \
			print(*map("-I{}".format, extension.include_paths()))') \
		-x c++-header $(OPS_CSRC)/pytorch_cpp_helper.hpp
	MMCV_WITH_OPS=1 FORCE_CUDA=0 CFLAGS="$(OPS_FLAGS)" pip install -q --no-deps --no-build-isolation \
		--target $(OPS) $(OPS)/source
	pip install -q -c requirements/constraints.txt --no-deps --target $(OPS) -r requirements/ops.txt
	rm -rf $(OPS)/source
	touch $@

data/fashion_mnist/t10k-labels-idx1-ubyte:
	$(MAKE) fashion-mnist

study: setup data/fashion_mnist/t10k-labels-idx1-ubyte  ## test the papers' claims on Fashion-MNIST, and write docs/study.md; resumable
	python -m benchmarks.study
	python -m benchmarks.study.page

bench: setup  ## what norms and their absence cost: time, memory, clipping; 20 to 40 minutes
	python -m benchmarks.cost.benchmark --out benchmarks/results/cost_cpu.json

bench-accuracy: setup  ## training time beside published accuracy, into docs/cost.md; ten minutes
	python -m benchmarks.cost.accuracy --out benchmarks/results/cost_accuracy.json \
		--docs docs/cost.md

# A bare machine with PyTorch for CUDA is enough: the environment sees its packages and adds what is
# missing. GPU=... are arguments, for instance GPU="--device cpu --out work_dirs/gpu" for a trial.
GPU_PYTHON ?= python3
GPU_VENV := .venv-gpu
$(GPU_VENV)/.installed: requirements/gpu.txt
	$(GPU_PYTHON) -m venv --system-site-packages $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install -q -r requirements/gpu.txt
	touch $@

gpu: $(GPU_VENV)/.installed  ## on a machine with a GPU: its tests, and benchmarks/results/*_cuda.json
	$(GPU_VENV)/bin/python -m pytest -m cuda $(shell grep -rl --include=*.py 'mark\.cuda$$' tests)
	$(GPU_VENV)/bin/python -m benchmarks.gpu $(GPU)

clean:  ## remove what make made
	rm -rf $(VENV) $(GPU_VENV) .ops .compat build work_dirs *.egg-info
