# Every target is a script in scripts/; `make` alone lists them.
PREFIX ?= /usr/local
export PREFIX
.DEFAULT_GOAL := help
.PHONY: help demo test test-full bench format lint install uninstall clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14 | sed 's/^/  make /'

demo: ## sets up, then a small language model answers six chat requests
	@scripts/demo.sh

test: ## sets up, then builds and runs every test
	@scripts/test.sh
