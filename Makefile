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
$(error ROS is "$(ROS)"; expected kilted, jazzy or humble-like)
endif

# The NumPy of an older ROS has no wheels for a newer Python.
NEWEST_MINOR := $(or $(if $(filter jazzy,$(ROS)),12),$(if $(filter humble-like,$(ROS)),10),13)
PYTHONS := 3.10$(if $(filter-out 10,$(NEWEST_MINOR)), to 3.$(NEWEST_MINOR))
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $(NEWEST_MINOR)))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python3.13; do \
	$$p -c '$(USABLE)' >/dev/null 2>&1 && { echo $$p; break; }; done)

DEMO_ENV := .venv-demo
VEHICLE_ENV := .venv-vehicle$(if $(filter-out kilted,$(ROS)),-$(ROS))
FUZZ_ENV := .venv-fuzz
SUPPLY_ENV := .venv-supply
TEST_ENV := .venv-test
# Another ROS than Kilted runs the vehicle's tests alone, with the versions that come with it.
TESTED_ENV := $(if $(filter kilted,$(ROS)),$(TEST_ENV),$(VEHICLE_ENV))
TESTED := $(if $(filter kilted,$(ROS)),lint,$(VEHICLE_ENV)/.ready)
BASE := requirements/vehicle.txt requirements/robot.txt
DEMO_REQUIREMENTS := requirements/vehicle.txt requirements/ros-kilted.txt
VEHICLE_REQUIREMENTS := requirements/test-vehicle.txt requirements/ros-$(ROS).txt
TEST_REQUIREMENTS := requirements/test.txt requirements/ros-kilted.txt
# Two processes, each with whole groups of tests: those that share a group share a fixture or the machine's time.
PYTEST := -m pytest -n 2 --dist loadgroup

# $(call quoted,text): one word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
# $(call option,name,text): an option and its value, or nothing where the variable is not set, which leaves the default.
option = $(if $(2),--$(1) $(call quoted,$(2)))
SOURCE = $(call option,input,$(INPUT)) $(call option,labels,$(LABELS)) $(call option,classes,$(CLASSES)) \
	$(call option,glob,$(GLOB)) $(call option,topic,$(TOPIC)) $(call option,frames,$(FRAMES))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-vehicle lint format clean train-lite fuzz soak lock sbom

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo
	@echo "demo:  INPUT=(rosbag, folder of images or video) LABELS= CLASSES=(class set of the labels) GLOB= TOPIC= FRAMES= RATE=10"
	@echo "       OUT=demo_out PARAMS='refine:=never max_regions:=3' (parameters of the node)"
	@echo "test, test-all, test-vehicle: ROS=kilted, jazzy or humble-like (the vehicle's tests), TESTS='tests/ros -k demo'"
	@echo "train-lite: DATA=(folder of the data sets, see docs/training.md) FROM=(first stage) UNTIL=(last stage)"
	@echo "fuzz:  SECONDS=120 (for each target) TARGETS='images bags_mcap'.    soak: MINUTES=20 SOAK_OUT=soak_out"
	@echo "all:   PYTHON=(a Python 3.10 to 3.13; for ROS=jazzy to 3.12, for ROS=humble-like 3.10)"

demo: $(DEMO_ENV)/.ready ## play a labelled night clip through the node; INPUT=... plays your own
	@$(DEMO_ENV)/bin/python -m nightlab_cli demo $(SOURCE) --rate $(call quoted,$(RATE)) --out $(call quoted,$(OUT)) \
		$(call option,param,$(PARAMS))

test: $(TESTED) ## run all checks, and the tests that are not marked slow
	$(TESTED_ENV)/bin/python $(PYTEST) -m "not slow" $(TESTS)

test-all: $(TESTED) ## run all checks and all tests
	$(TESTED_ENV)/bin/python $(PYTEST) $(TESTS)

test-vehicle: $(VEHICLE_ENV)/.ready ## run the tests that need no torch, in a small environment
	$(VEHICLE_ENV)/bin/python $(PYTEST) $(TESTS)

lint: $(TEST_ENV)/.ready ## check formatting, lint, types and the rules on imports
	$(TEST_ENV)/bin/python -m ruff check .
	$(TEST_ENV)/bin/python -m ruff format --check .
	$(TEST_ENV)/bin/python -m mypy
	$(TEST_ENV)/bin/lint-imports

format: $(TEST_ENV)/.ready ## rewrite the sources in the format that lint expects
	$(TEST_ENV)/bin/python -m ruff check --fix .
	$(TEST_ENV)/bin/python -m ruff format .

train-lite: $(TEST_ENV)/.ready ## train the lite bundle from the shipped weights and the data; continues a stopped run
	$(TEST_ENV)/bin/python -m training.lite --data $(call quoted,$(DATA)) $(call option,from,$(FROM)) $(call option,until,$(UNTIL))

fuzz: $(FUZZ_ENV)/.ready ## fuzz the readers of images, bags, messages and bundles, guided by coverage
	$(FUZZ_ENV)/bin/python tests/fuzz/fuzz.py $(call option,seconds,$(SECONDS)) $(TARGETS)

soak: $(VEHICLE_ENV)/.ready ## run the node under overload and random faults, and check that nothing is lost unseen
	$(VEHICLE_ENV)/bin/python tests/faults/soak.py $(call option,minutes,$(MINUTES)) $(call option,out,$(SOAK_OUT))

lock: $(SUPPLY_ENV)/.ready ## pin the vehicle's requirements with hashes, for every supported Python
	$(SUPPLY_ENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --upgrade --no-header \
		--no-annotate --no-emit-index-url requirements/vehicle.txt --output-file requirements/vehicle.lock

sbom: $(SUPPLY_ENV)/.ready $(DEMO_ENV)/.ready ## list the parts of the vehicle's environment in sbom.json (CycloneDX)
	$(SUPPLY_ENV)/bin/cyclonedx-py environment --output-format JSON --output-file sbom.json $(DEMO_ENV)/bin/python

clean: ## remove the environments, the caches and the output of the demo
	rm -rf .venv-demo .venv-vehicle .venv-vehicle-* .venv-test .venv-fuzz .venv-supply sbom.json demo_out .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# $(call make_environment,folder,requirements files,what it downloads,options of pip)
define make_environment
	@[ -n $(call quoted,$(PYTHON)) ] || { echo "No usable Python: Python $(PYTHONS) with its venv module is needed (on Debian and Ubuntu:" \
		"apt install python3-venv). Name yours with make PYTHON=/path/to/python3." >&2; exit 1; }
	@$(call quoted,$(PYTHON)) -c '$(USABLE)' || { echo $(call quoted,$(PYTHON)) "is $$($(call quoted,$(PYTHON)) --version 2>&1); Python $(PYTHONS) with its venv module is needed." >&2; exit 1; }
	@echo "Making $(1) with $$($(call quoted,$(PYTHON)) --version), once. It downloads $(3)."
	@$(call quoted,$(PYTHON)) -m venv --clear $(1)
	@$(1)/bin/python -m pip install --quiet --upgrade pip
	@$(1)/bin/python -m pip install --quiet $(4) $(foreach f,$(2),-r $(f))
endef

$(DEMO_ENV)/.ready: $(DEMO_REQUIREMENTS) $(BASE)
	$(call make_environment,$(DEMO_ENV),$(DEMO_REQUIREMENTS),about 200 MB without torch)
	@touch $@

$(VEHICLE_ENV)/.ready: $(VEHICLE_REQUIREMENTS) requirements/ros-jazzy-wheels.txt requirements/replay.txt $(BASE)
	$(call make_environment,$(VEHICLE_ENV),$(VEHICLE_REQUIREMENTS),about 250 MB without torch,--no-compile)
	@$(VEHICLE_ENV)/bin/python requirements/trim.py $(VEHICLE_ENV)
	@touch $@

$(TEST_ENV)/.ready: $(TEST_REQUIREMENTS) requirements/train.txt requirements/replay.txt requirements/tensorrt.txt $(BASE)
	$(call make_environment,$(TEST_ENV),$(TEST_REQUIREMENTS),about 3 GB (torch with its CUDA libraries; on disk 6 GB). Without torch: make test-vehicle)
	@touch $@

$(FUZZ_ENV)/.ready: requirements/fuzz.txt $(BASE)
	$(call make_environment,$(FUZZ_ENV),requirements/fuzz.txt,about 200 MB)
	@touch $@

$(SUPPLY_ENV)/.ready: requirements/supply.txt
	$(call make_environment,$(SUPPLY_ENV),requirements/supply.txt,about 30 MB)
	@touch $@
