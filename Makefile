# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.10 to 3.13 and make, nothing else. Each environment is made once, and again when its requirements change.

ROS ?= kilted
RATE ?= 10
OUT ?= demo_out

# A sourced ROS would put its own Python packages and libraries before those of the environments made here.
unexport LD_LIBRARY_PATH AMENT_PREFIX_PATH COLCON_PREFIX_PATH RMW_IMPLEMENTATION ROS_DISTRO PYTHONHOME VIRTUAL_ENV
unexport FASTRTPS_DEFAULT_PROFILES_FILE FASTDDS_DEFAULT_PROFILES_FILE _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PYTHONPATH := $(CURDIR)
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifeq (,$(wildcard requirements/ros-$(ROS).txt))
$(error ROS is "$(ROS)"; expected kilted or jazzy)
endif

USABLE := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python3.13; do \
	$$p -c '$(USABLE)' >/dev/null 2>&1 && { echo $$p; break; }; done)

DEMO_ENV := .venv-demo
TEST_ENV := .venv-test$(if $(filter-out kilted,$(ROS)),-$(ROS))
DEMO_REQUIREMENTS := requirements/vehicle.txt requirements/ros-kilted.txt
TEST_REQUIREMENTS := requirements/test.txt requirements/ros-$(ROS).txt
# The folder is given only where it is wanted, so that an unset variable leaves the program's own default.
SOURCE := $(if $(INPUT),--input '$(INPUT)') $(if $(LABELS),--labels '$(LABELS)') $(if $(CLASSES),--classes '$(CLASSES)') \
	$(if $(GLOB),--glob '$(GLOB)') $(if $(TOPIC),--topic '$(TOPIC)') $(if $(FRAMES),--frames '$(FRAMES)')

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean train-lite .given-data

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "demo:  INPUT=(rosbag, folder of images or video) LABELS= CLASSES=(cityscapes19, bdd18, camvid11) GLOB= TOPIC= FRAMES= RATE=10"
	@echo "       OUT=demo_out PARAMS='mode:=image_level ...' (the node's parameters)"
	@echo "test:  ROS=kilted or jazzy, TESTS='tests/ros -k demo'"
	@echo "train-lite: DATA=(folder of the data sets, see docs/training.md)"
	@echo "all:   PYTHON=(a Python 3.10 to 3.13)"

demo: $(DEMO_ENV)/.ready ## play a labelled night clip through the node; INPUT=... plays your own
	@$(DEMO_ENV)/bin/python -m nightlab_ros.demo.demo $(SOURCE) --rate '$(RATE)' --out '$(OUT)' $(foreach p,$(PARAMS),--param '$(p)')

test: lint ## all checks and all tests, in an environment with everything (torch included)
	$(TEST_ENV)/bin/python -m pytest $(TESTS)

lint: $(TEST_ENV)/.ready ## formatting, lint, types and the rules on who imports whom
	$(TEST_ENV)/bin/python -m ruff check .
	$(TEST_ENV)/bin/python -m ruff format --check .
	$(TEST_ENV)/bin/python -m mypy
	$(TEST_ENV)/bin/lint-imports

format: $(TEST_ENV)/.ready ## rewrite the sources as lint wants them
	$(TEST_ENV)/bin/python -m ruff check --fix .
	$(TEST_ENV)/bin/python -m ruff format .

# On a CPU the allocator must keep its pages, or the kernel takes half of a step; see docs/training.md.
TRAIN := env GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 $(TEST_ENV)/bin/python
RECIPES := config/train
FRAMES = '$(DATA)/camvid/val/images'

.given-data:
	@[ -d '$(DATA)' ] || { echo "DATA is '$(DATA)'; expected the folder of the data sets: make train-lite DATA=..." >&2; exit 1; }

train-lite: .given-data $(TEST_ENV)/.ready ## train the lite bundle on, from the shipped weights and the data to its figures; resumes where it was stopped
	[ -e runs/pseudo_night/.done ] || { rm -rf runs/pseudo_night && \
		$(TRAIN) -m training.stages.pseudo nightlab_core/bundles/nightlab-lite --data '$(DATA)' --out runs/pseudo_night; }
	@touch runs/pseudo_night/.done
	$(TRAIN) -m training.stages.segmenter $(RECIPES)/lite_image.yaml --data '$(DATA)' --out runs/lite_image
	$(TRAIN) -m training.stages.segmenter $(RECIPES)/lite_region.yaml --data '$(DATA)' --out runs/lite_region
	$(TRAIN) -m training.stages.detector $(RECIPES)/lite_detector.yaml --data '$(DATA)' --out runs/lite_detector
	@# HDM learns from what both levels read in the plain detector's boxes: once a stage before it is trained again, so is HDM.
	[ -e runs/lite_rdn_bundle/.done ] && [ -z "$$(find runs/lite_image runs/lite_region runs/lite_detector -name checkpoint.pt -newer runs/lite_rdn_bundle/.done)" ] || { \
		rm -rf runs/lite_rdn_bundle runs/lite_hdm_helps runs/lite_proposals.npz && \
		$(TRAIN) -m training.combine_checkpoints $(RECIPES)/lite_bundle.yaml --out runs/lite_rdn_bundle.pt && \
		$(TRAIN) -m nightlab_core.export.export runs/lite_rdn_bundle.pt runs/lite_rdn_bundle --frames $(FRAMES) && \
		$(TRAIN) -m training.evaluation.evaluate runs/lite_rdn_bundle --data '$(DATA)' --set camvid/val --set nightcoarse/val --record && \
		touch runs/lite_rdn_bundle/.done; }
	$(TRAIN) -m training.stages.hdm $(RECIPES)/lite_hdm_helps.yaml --data '$(DATA)' --out runs/lite_hdm_helps
	$(TRAIN) -m training.combine_checkpoints $(RECIPES)/lite_hdm_bundle.yaml --out runs/nightlab-lite.pt
	$(TRAIN) -m nightlab_core.export.export runs/nightlab-lite.pt runs/nightlab-lite --frames $(FRAMES)
	$(TRAIN) -m training.evaluation.evaluate runs/nightlab-lite --data '$(DATA)' --set camvid/val --set nightcoarse/val --record
	@# The bundle is made. What follows it does not take: hard classes as measured, light adaptation taught by itself, and
	@# everything trained on together by equation 8, with what that gains.
	$(TRAIN) -m training.evaluation.hard_classes runs/lite_image/checkpoint.pt --data '$(DATA)' --set camvid/val --set nightcoarse/val --out runs/hard_classes.yaml
	$(TRAIN) -m training.stages.relam $(RECIPES)/relam_image.yaml --data '$(DATA)' --out runs/relam_image
	$(TRAIN) -m training.stages.relam $(RECIPES)/relam_region.yaml --data '$(DATA)' --out runs/relam_region
	[ ! -e runs/lite_joint/checkpoint.pt ] || [ -z "$$(find runs/lite_hdm_helps -name checkpoint.pt -newer runs/lite_joint/checkpoint.pt)" ] || rm -rf runs/lite_joint
	$(TRAIN) -m training.stages.joint $(RECIPES)/lite_joint.yaml --data '$(DATA)' --out runs/lite_joint
	$(TRAIN) -m nightlab_core.export.export runs/lite_joint/nightlab.pt runs/nightlab-lite-joint --frames $(FRAMES)
	$(TRAIN) -m training.evaluation.evaluate runs/nightlab-lite-joint --data '$(DATA)' --set camvid/val --set nightcoarse/val --record

clean: ## remove the environments, the caches and the demo's output
	rm -rf .venv-demo .venv-test .venv-test-* demo_out .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# $(call make_environment,folder,requirements files)
define make_environment
	@[ -n "$(PYTHON)" ] || { echo "No usable Python: Python 3.10 to 3.13 with its venv module is needed (on Debian and Ubuntu:" \
		"apt install python3-venv). Name yours with make PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c '$(USABLE)' || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.10 to 3.13 with its venv module is needed." >&2; exit 1; }
	@echo "Making $(1) with $$($(PYTHON) --version), once"
	@$(PYTHON) -m venv --clear $(1)
	@$(1)/bin/python -m pip install --quiet --upgrade pip
	@$(1)/bin/python -m pip install --quiet $(foreach f,$(2),-r $(f))
	@touch $@
endef

$(DEMO_ENV)/.ready: $(DEMO_REQUIREMENTS)
	$(call make_environment,$(DEMO_ENV),$(DEMO_REQUIREMENTS))

$(TEST_ENV)/.ready: $(TEST_REQUIREMENTS) requirements/train.txt requirements/replay.txt requirements/tensorrt.txt requirements/vehicle.txt
	$(call make_environment,$(TEST_ENV),$(TEST_REQUIREMENTS))
