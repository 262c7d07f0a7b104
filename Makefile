# Each target makes .venv on first use and installs into it what it needs, under constraints.txt.
# A stamp file in .venv remembers each install, so that a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PHOTO ?= examples/photo.png

bin := $(VENV)/bin
sources := pyproject.toml $(wildcard CMakeLists.txt) $(shell find cpp src -type f -not -name '*.pyc' -not -name '_engine.*')
engine_tests := $(wildcard tests/test_ops*.py tests/test_engine*.py tests/test_cpu*.py tests/test_arrays*.py tests/hostile/test_ops*.py)
native := $(shell find cpp benchmarks -name '*.h' -o -name '*.cc')

.PHONY: help demo test lint format bench sanitize clean
.DELETE_ON_ERROR:

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.installed-torch ## Upscale a photograph with a learned transposed convolution
	@mkdir -p demo
	$(bin)/upscore run upscale-x2 $(PHOTO) -o demo/$(notdir $(basename $(PHOTO)))-x2.png --force $(ARGS)

test: export UPSCORE_REQUIRE_ALL ?= 1
test: $(VENV)/.installed-test,oracles,bench ## Run the tests on the installed package; one of them: make test ARGS="-k phases"
	$(bin)/python -m pytest tests --pyargs upscore $(ARGS)

lint: $(VENV)/.installed-test,dev ## Check style, types, the order of imports and the C++ format
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	cp "$$(cd / && $(abspath $(bin))/python -c 'import pathlib, upscore; print(pathlib.Path(upscore.__file__).with_name("_engine.pyi"))')" src/upscore/
	$(bin)/mypy
	PYTHONPATH=src $(bin)/lint-imports --no-cache
	$(bin)/clang-format --dry-run -Werror $(native)

format: $(VENV)/.installed-test,dev ## Rewrite the sources in the house style
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(native)

bench: $(VENV)/.installed-bench ## Race the engine against its peers; options: make bench ARGS="--help"
	$(bin)/python -m benchmarks $(or $(ARGS),race)

# The sanitized engine lives in a directory of its own, so that it never mixes with the installed one.
sanitize: $(VENV)/.installed-test build/sanitize/.built ## Run the engine's tests under ASan and UBSan
	PYTHONPATH=build/sanitize/site LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	UPSCORE_SANITIZED=1 HYPOTHESIS_PROFILE=quick \
	$(bin)/python -m pytest $(engine_tests) $(ARGS)

clean: ## Remove what the other targets made, except .venv
	rm -rf build dist demo src/upscore/_engine.pyi .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.tools: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"upscore needs Python 3.10 or later, {sys.executable} is {sys.version}; for example make PYTHON=python3.12")'
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --constraint constraints.txt scikit-build-core nanobind cmake ninja
	@touch $@

# The build reuses build/, so that after an edit only what changed is compiled.
$(VENV)/.installed-%: $(VENV)/.tools $(sources)
	$(bin)/python -m pip install --constraint constraints.txt --no-build-isolation ".[$*]"
	@touch $@

build/sanitize/.built: $(VENV)/.tools $(sources)
	rm -rf build/sanitize/site
	$(bin)/python -m pip install --no-deps --no-build-isolation --target build/sanitize/site \
		--config-settings build-dir=build/sanitize/cmake --config-settings cmake.define.UPSCORE_SANITIZE=ON .
	@touch $@
