# Every target is a script in scripts/; `make` alone lists them.
PREFIX ?= /usr/local
export PREFIX
.DEFAULT_GOAL := help
.PHONY: help demo test test-torch test-wheel test-full bench format lint install uninstall clean wheel dist

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14 | sed 's/^/  make /'

demo: ## sets up, then a small language model answers six chat requests
	@scripts/demo.sh

test: ## sets up, then builds and runs every test
	@scripts/test.sh

test-torch: ## what needs torch: Debian's python3-torch, or FULMEN_PYTHON=FILE
	@scripts/test_torch.sh

test-wheel: wheel ## the wheel on every Python from 3.10 up that this machine has
	@scripts/test_wheel.sh

test-full: ## hours: many seeds, sanitizer builds, fuzzers; goes on where it stopped
	@scripts/test_full.sh

bench: ## builds and runs the benchmarks of the CPU back end
	@scripts/bench.sh

format: ## formats all C++ sources
	@scripts/format.sh

lint: ## clang-tidy and shellcheck; warnings are errors
	@scripts/lint.sh

install: ## builds and installs into PREFIX (/usr/local)
	@scripts/install.sh

uninstall: ## removes what make install wrote
	@scripts/uninstall.sh

clean: ## removes what was built; downloads are kept
	@scripts/clean.sh

wheel: ## the Python package, into dist/
	@scripts/wheel.sh

dist: ## dist/gpu: checks and benchmark as one folder for a machine with a GPU
	@scripts/dist.sh
