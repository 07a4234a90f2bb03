# SPDX-License-Identifier: Apache-2.0
# Every entry point of Thicket. `make help` explains them; each calls one program.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Set and empty means the same as not set.
ifeq ($(strip $(THICKET_CACHE)),)
override THICKET_CACHE := $(shell THICKET_CACHE= bin/host-setup cache)
endif
export THICKET_CACHE
export PYTHONPATH := $(CURDIR)/tests/meshlab/src:$(CURDIR)/app/src:$(CURDIR)/tools/src
export PYTHONDONTWRITEBYTECODE := 1

# Asked for once, where a target needs it; makes the environment when there is none.
python = $(eval python := $$(shell bin/host-setup python))$(or $(python),$(error no Python environment, see above))

##@ Simulate

N ?= 5
TOPOLOGY ?= grid
IMAGE ?= lab
MACHINE ?=
NODES ?=
SEED ?= 1
SECURITY ?= sae
LAB ?= default
APPS ?=
ONCE ?=
CABLES ?=
KEEP ?=
SCENARIO ?=
REPEAT ?=
WEB ?=
HOSTS ?=
ON ?=

given = $(filter command environment,$(origin $(1)))

# The images of single nodes: NODE=IMAGE or NODE=IMAGE@MACHINE.
node_images = $(foreach node,$(NODES),$(firstword $(subst @, ,$(lastword $(subst =, ,$(node))))))

qemu-mesh: image packages ## Boot nodes in one simulated mesh and watch them, or play [SCENARIO=FILE]
	@$(if $(SCENARIO),bin/meshlab --lab "$(LAB)" run $(SCENARIO) $(if $(REPEAT),--repeat "$(REPEAT)") \
		$(if $(call given,SEED),--seed "$(SEED)") $(if $(call given,IMAGE),--image "$(IMAGE)") \
		$(if $(HOSTS),--hosts "$(HOSTS)") $(foreach node,$(ON),--on "$(node)"),\
	$(if $(RESUME),bin/meshlab --lab "$(LAB)" up --resume "$(RESUME)" $(if $(ONCE),--once) $(if $(WEB),--web) \
		$(if $(call given,N),--nodes "$(N)") $(if $(call given,TOPOLOGY),--topology "$(TOPOLOGY)") \
		$(if $(call given,IMAGE),--image "$(IMAGE)") $(if $(call given,SEED),--seed "$(SEED)"),\
	bin/meshlab --lab "$(LAB)" up --nodes "$(N)" --topology "$(TOPOLOGY)" --image "$(IMAGE)" \
		--seed "$(SEED)" --security "$(SECURITY)" $(foreach app,$(APPS),--application "$(app)") \
		$(if $(MACHINE),--machine "$(MACHINE)") $(foreach node,$(NODES),--node "$(node)") \
		$(if $(FADING),--fading "$(FADING)") $(if $(DECODING),--decoding "$(DECODING)") \
		$(if $(HOSTS),--hosts "$(HOSTS)") $(foreach node,$(ON),--on "$(node)") \
		$(if $(HT),--ht) $(if $(CABLES),--cables) $(foreach node,$(UPLINK),--uplink "$(node)") \
		$(if $(KEEP),--keep) $(if $(ONCE),--once) $(if $(WEB),--web)))

##@ Build

TOOLCHAIN ?= bootlin
EXTRA ?=
firmware = $(python) -m firmware.build --toolchain "$(TOOLCHAIN)" --extra "$(EXTRA)"

rpi64: packages-build ## The card image for Raspberry Pi 3, 4, 5, Zero 2 W and modules (Buildroot)
	@$(firmware) $@

x86_64: packages-build ## The same product for x86-64, for fleets in QEMU (Buildroot)
	@$(firmware) $@

rpi64-bundle: packages-build packages-bundle ## An unsigned update of it; so do x86_64-bundle and standin-bundle
	@$(firmware) rpi64 bundle

x86_64-bundle: packages-build packages-bundle
	@$(firmware) x86_64 bundle

# Of the cards that tests boot where no firmware was built (docs/simulator.md)
standin-bundle: packages-standin
	@$(python) -m meshlab.image --bundle standin

standin-rpi64-bundle: packages-standin-rpi64
	@$(python) -m meshlab.image --bundle standin-rpi64

# make BOARD-TARGET: one word each, for what people do with a configuration or a build.
rpi64-%: packages-build
	@$(firmware) rpi64 $*

x86_64-%: packages-build
	@$(firmware) x86_64 $*

defconfigs: ## Make configs/*_defconfig of their fragments
	@$(python) -m firmware.defconfigs

lab-image: packages ## Build the image that qemu-mesh boots, when its sources changed
	@$(python) -m meshlab.image

relay: packages ## Compile hwsim-relay, the guest's end of the simulated radio, for this machine
	@$(MAKE) --no-print-directory -C package/hwsim-relay/src

##@ Publish

BOARDS ?= rpi64 x86_64
OUT ?=
FROM ?=
SIGNER ?=

release: packages-release ## A folder for any web server: [SIGNER=NAME] [BOARDS="rpi64 x86_64"] [OUT=DIR] [FROM=OLDER]
	@$(python) -m meshlab.cli.release --boards "$(BOARDS)" --toolchain "$(TOOLCHAIN)" --extra "$(EXTRA)" \
		$(if $(OUT),--out "$(OUT)") $(if $(FROM),--from "$(FROM)") $(if $(SIGNER),--signer "$(SIGNER)") \
		$(if $(FORCE),--force)

##@ Flash

DEV ?=
CONFIG ?=
FILE ?=
BOARD ?=
ROOT ?=
FORCE ?=
YES ?=

flash: packages-flash ## Write a card: DEV=/dev/sdX [IMAGE=rpi64 or URL] [CONFIG=my.toml]; without DEV, show disks
	@bin/flash --image "$(if $(filter-out lab,$(IMAGE)),$(IMAGE),rpi64)" $(if $(CONFIG),--config "$(CONFIG)") \
		$(if $(BOARD),--board "$(BOARD)") $(if $(ROOT),--root "$(ROOT)") \
		$(if $(FORCE),--force-fixed) $(if $(YES),--yes) $(if $(FILE),--file "$(FILE)") \
		$(if $(DEV),"$(DEV)",$(if $(FILE),,--list))

##@ Check

TESTS ?=
PYTEST ?=
ROUNDS ?= 10
SOAK ?= 600
export TESTS PYTEST

test: erlang-releases ## All of the next three, then one report: what must pass before a change lands
	@$(python) tests/run.py

lint: packages-test ## Style, types, shell scripts, C warnings
	@$(python) tests/run.py lint

test-unit: erlang-releases ## Tests that boot nothing
	@$(python) tests/run.py unit

test-mesh: packages-test ## Tests on running nodes: boots meshes and single cards in QEMU
	@$(python) tests/run.py mesh

test-web: packages-web ## The tests of the page in a real browser, which it installs
	@TESTS="tools/tests/test_web_browser.py" $(python) tests/run.py

soak: erlang-releases ## What takes long: [SOAK=600] seconds for each test that only watches
	@THICKET_SOAK="$(SOAK)" $(python) tests/run.py soak

test-loaded: erlang-releases ## The tests [ROUNDS=10] times, shuffled, on a busy machine, see tests/run.py
	@$(python) tests/run.py --rounds "$(ROUNDS)"

FUZZ_SECONDS ?= 60
TARGET ?=

fuzz: packages-test ## Look for inputs that break a parser: [TARGET=etf] [FUZZ_SECONDS=60 for each]
	@$(python) tests/fuzz/run.py --seconds "$(FUZZ_SECONDS)" $(TARGET)

bench: image packages ## Print figures of IMAGE: sizes, boot, mesh, CPU, memory, frames, round trips
	@$(python) -m meshlab.bench --image "$(IMAGE)" $(if $(SIZES),--sizes $(SIZES))

bench-cluster: erlang-releases ## Print figures: calls and messages between nodes, beside real Erlang
	@$(python) app/tests/bench_distribution.py --with-tls

bench-update: packages-standin ## How an update spreads in a mesh of [N=8] nodes that lose frames, beside one alone
	@$(python) -m meshlab.bench.update --nodes "$(if $(filter 5,$(N)),8,$(N))"

bench-cluster-mesh: packages ## The same between simulated nodes, beside Erlang over the same link
	@$(python) -m meshlab.bench.cluster

bench-membership: packages-test ## Who is in a fleet of [SIZES="50 200 1000 10000"] nodes, simulated without QEMU
	@PYTHONHASHSEED=0 $(python) -m meshlab.bench.membership $(if $(SIZES),--sizes $(SIZES))

bench-medium: packages-test ## What frames cost the simulated air: its engine alone, and with sockets
	@$(python) -m meshlab.bench.engine
	@$(python) -m meshlab.bench.medium

bench-peer: packages-test ## What one more peer costs a node until a mesh has formed, counted [SIZES="6 12"]
	@PYTHONHASHSEED=0 $(python) app/tests/bench_peer.py $(if $(SIZES),--sizes $(SIZES))

bench-fleet: packages-test ## What `thicket fleet` costs: bytes a minute, and a node that nobody asks [SIZES="8 20"]
	@PYTHONHASHSEED=0 $(python) app/tests/bench_fleet.py $(if $(SIZES),--sizes $(SIZES))

bench-features: image packages ## What a node pays for what only some need: memory, CPU, idle in a mesh of three
	@$(python) -m meshlab.bench.features

bench-beacon: packages-test ## Print figures: what a signed beacon costs, and a flood of them
	@$(python) app/tests/bench_beacon.py

##@ Keep house

image: # said before anything is installed
	@bin/host-setup image "$(IMAGE)"$(foreach image,$(node_images), && bin/host-setup image "$(image)")

packages: ## Install the distribution packages that the simulator needs, or print the line that does
	@bin/host-setup packages run $(sort $(filter rpi64 standin standin-rpi64,$(IMAGE) $(node_images)))

packages-test:
	@bin/host-setup packages run test

erlang-releases: packages-test
	@bin/erlang-releases

packages-web:
	@bin/host-setup packages web

packages-flash:
	@bin/host-setup packages flash

packages-build:
	@bin/host-setup packages build

packages-bundle:
	@bin/host-setup packages bundle

packages-release:
	@bin/host-setup packages bundle $(if $(filter-out standin%,$(BOARDS)),build) \
		$(if $(filter standin%,$(BOARDS)),run) $(filter standin%,$(BOARDS))

packages-standin packages-standin-rpi64:
	@bin/host-setup packages run bundle $(@:packages-%=%)

format: ## Let ruff rewrite the Python sources
	@$(python) -m ruff format .
	@$(python) -m ruff check --fix .

lock: ## Write the hashes of all Python packages anew, after a change of constraints.in
	@bin/host-setup lock

clean: ## Delete lab runs and logs from the cache; images, kernels and downloads stay
	@bin/host-setup clean

distclean: ## Delete the whole cache
	@bin/host-setup distclean

help: ## This text
	@awk 'BEGIN { FS = ":.*## " } \
	      /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	      /^[a-z0-9_-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@printf '\nVariables of qemu-mesh\n'
	@printf '  %-34s %s\n' \
		'N=5' 'how many nodes' \
		'TOPOLOGY=grid' 'line, ring, grid, full, random or star' \
		'SECURITY=sae' 'sae (a passphrase), or open' \
		'IMAGE=lab' 'what they run: lab, the firmware x86_64 or rpi64, a stand-in for it, or a card image' \
		'MACHINE=raspi3b' 'what rpi64 runs on: virt, or a Raspberry Pi 3 B' \
		'NODES="n2=standin-rpi64@raspi3b"' 'nodes with another image or machine than the others' \
		'APPS=examples/readings' 'applications to install on all nodes (lab image)' \
		'SEED=1' 'chips, topology and luck on the air; the same seed, the same fleet' \
		'FADING=' 'how signals change by themselves, such as "rayleigh doppler=2"' \
		'HT=1' 'HT rates and aggregates instead of legacy rates' \
		'DECODING=soft' 'receivers that decode as real ones do' \
		'HOSTS="user@a b=2 local"' 'machines that nodes run on, by SSH, with weights; ON="n1=local": one node' \
		'LAB=default' 'a name, to run several at once' \
		'ONCE=1' 'for machines: JSON summary when the mesh has formed, then the end' \
		'CABLES=1' 'nodes with wired ports, for `bin/meshlab cable`' \
		'UPLINK=n1' 'gateways to the network of this machine (docs/gateway.md)' \
		'WEB=1' 'serve the page of the mesh for a browser, too (docs/web.md)' \
		'KEEP=1' 'go on with the chips and disks of the last run' \
		'SCENARIO=FILE' 'play it and end (docs/scenarios.md); REPEAT=5: with figures'
	@printf '\nmake BOARD-TARGET: bundle, menuconfig, linux-menuconfig, savedefconfig, show-size, sbom, cve, legal-info, sdk ...\n'
	@printf 'TOOLCHAIN=, EXTRA=, BUILDROOT=: docs/building.md\n'
	@printf '\nVariables of test, test-unit, test-mesh\n'
	@printf '  %-34s %s\n' \
		'TESTS=tests/mesh/test_line.py' 'only these files, or FILE::TEST; several in quotes' \
		'PYTEST="-k name -x"' 'goes to pytest'
	@printf '\nThe cache is %s (THICKET_CACHE).\n' "$(THICKET_CACHE)"

.PHONY: bench bench-beacon bench-cluster bench-cluster-mesh bench-features bench-fleet bench-medium bench-peer bench-update clean defconfigs distclean flash format fuzz help \
	erlang-releases image lab-image lint lock packages packages-build packages-bundle \
	packages-flash packages-release packages-standin packages-standin-rpi64 packages-test packages-web release rpi64 rpi64-bundle \
	standin-bundle standin-rpi64-bundle x86_64 x86_64-bundle \
	qemu-mesh relay soak test test-loaded test-mesh test-unit test-web
