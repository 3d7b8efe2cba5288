BIN := .venv/bin
READY := .venv/.ready

# Older ones do not hand Horovod's build both its dependencies and its variables.
UV_MIN := 0.8.6
UV := $(shell uv --version 2>/dev/null | awk -v min=$(UV_MIN) ' \
	function number(s, v) { split(s, v, "."); return (v[1] * 1000 + v[2]) * 1000 + v[3] } \
	{ enough = number($$2) >= number(min) } END { exit !enough }' && command -v uv || echo .tools/bin/uv)

# What is missing is told before minutes are spent, and all of it at once.
preflight = missing=; lack() { missing=1; printf '%s\n  %s\n' "$$@" >&2; }; \
	{ command -v c++ || command -v g++ || command -v "$$CXX"; } >/dev/null || lack \
	    "No C++ compiler (g++ or c++) on PATH. Horovod is built from source." \
	    "Install one: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)."; \
	[ -x "$(UV)" ] || python3 -c 'import ensurepip, sys; assert sys.version_info >= (3, 8)' 2>/dev/null || lack \
	    "$$(command -v python3 >/dev/null && echo "python3 -m venv does not work here, or is older than 3.8" || echo "No python3 on PATH"). uv is installed with it." \
	    "Install it: apt-get install python3 python3-venv (Debian, Ubuntu), dnf install python3 (Fedora), xcode-select --install (macOS); or install uv $(UV_MIN) or newer."; \
	free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); \
	[ -d .venv ] || [ "$${free:-10}" -ge 10 ] || lack \
	    "$$free GB free on the disk of $$PWD. Set-up needs 10 GB." \
	    "Make room there, or clone to a larger disk."; \
	[ -z "$$missing" ]

# Horovod compiles on one core where MAKEFLAGS says anything.
unexport MAKEFLAGS MFLAGS
export UV_PROJECT_ENVIRONMENT := .venv

.PHONY: help setup demo test soak lint bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml uv.lock
	@$(preflight)
	@[ -d .venv ] || echo "The first set-up takes about 5 minutes: Horovod is built from source."
	@[ -x "$(UV)" ] || { python3 -m venv --clear .tools && \
	    .tools/bin/pip install --quiet --disable-pip-version-check "uv>=$(UV_MIN)"; }
	@"$(UV)" sync --locked --all-extras
	@touch $@

setup: $(READY) ## everything the other targets need, into .venv
	@echo "Set up: .venv is ready."

demo: $(READY) ## the whole pipeline on a small catalogue
	@$(BIN)/lookalike run --conf conf/demo.yaml

test: $(READY) ## every test but the long ones
	@$(BIN)/pytest tests -n 2 --dist loadgroup -ra -m "not soak" --durations=15

soak: $(READY) ## the long tests
	@$(BIN)/pytest tests -ra -m soak || { \
	    code=$$?; [ $$code -eq 5 ] || exit $$code; echo "No test is marked soak: nothing was run."; }

lint: $(READY) ## style, types and the layers between packages
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy src jobs
	@MYPYPATH=src $(BIN)/mypy benchmarks
	@$(BIN)/lint-imports

bench: $(READY) ## every benchmark
	@for file in benchmarks/[a-z]*.py; do \
	    [ -e "$$file" ] || { echo "No benchmark in benchmarks/ yet."; break; }; \
	    echo "== $$file"; $(BIN)/python "$$file" || exit; \
	done

clean: ## remove the environment, the warehouse and the caches
	@rm -rf .venv .tools warehouse spark-warehouse metastore_db derby.log
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +
