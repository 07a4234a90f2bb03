# placeholder until the real one lands
THICKET_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/thicket
venv:
	$(THICKET_CACHE)/venv/bin/pip -q install -c constraints.txt -e app -e 'tests/meshlab[test]'
