# layermerge: build, test, measure. Knobs: CC= BLAS=openblas|none JPEG=stb|turbo B=build/dir PREFIX= DESTDIR=
# TEST_ISA=scalar|avx2|avx512 V=1
CC     ?= cc
CFLAGS ?= -O3 -g1
PREFIX ?= /usr/local
BLAS   ?= openblas
JPEG   ?= stb
B      ?= build/release

# Floats mean what the source says: no fast-math, no contraction behind our back. Position-independent,
# with nothing visible but layermerge.h, so that the same objects make program and libraries.
FLAGS = -std=c11 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -I. -pthread -ffp-contract=off \
        -fPIC -fvisibility=hidden \
        -Wall -Wextra -Werror=implicit-function-declaration -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wdouble-promotion
ifeq ($(BLAS),none)
FLAGS += -DBLAS_NONE
LIBS  = -lz -lm
else
LIBS  = -lopenblas -lz -lm
endif
ifeq ($(JPEG),turbo)
FLAGS += -DJPEG_TURBO
LIBS  += -ljpeg
else
EXTRA  = data/turbo.c
endif

CMD   := $(wildcard */cmd_*.c)
SRC   := lm.c $(filter-out $(CMD) $(EXTRA),$(wildcard core/*.c core/kern/*.c nn/*.c nn/ops/*.c nn/models/*.c \
                                        data/*.c train/*.c search/*.c))
TESTS := $(patsubst %.c,$(B)/%,$(wildcard tests/test_*.c))
BENCH := $(patsubst %.c,$(B)/%,$(wildcard bench/bench_*.c))
LIB   := $(B)/liblayermerge.a
obj    = $(patsubst %.c,$(B)/%.o,$(1))
Q      = $(if $(V),,@echo "  $@";)

# All cores, unless the caller chose.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif

all: $(B)/layermerge
	@cmp -s $< layermerge || cp -f $< layermerge
$(B)/layermerge: $(call obj,main.c $(CMD)) $(LIB)
	$(Q)$(CC) $(CFLAGS) -pthread $(LDFLAGS) $^ -o $@ $(LIBS)
$(LIB): $(call obj,$(SRC))
	$(Q)rm -f $@ && $(AR) qcs $@ $^
$(TESTS) $(BENCH): $(B)/%: $(B)/%.o $(LIB)
	$(Q)$(CC) $(CFLAGS) -pthread $(LDFLAGS) $(filter %.o,$^) $(LIB) -o $@ $(LIBS)
$(B)/%.o: %.c $(B)/flags
	$(Q)mkdir -p $(@D) && $(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) $(ISA) $(ABOUT) -MMD -MP -c $< -o $@

# What other programs link with, shared and static; in both only lm_* can be seen.
SONAME := liblayermerge.so.0
SHARED := $(B)/$(SONAME)
STATIC := $(B)/static/liblayermerge.a
$(SHARED): $(LIB)
	$(Q)$(CC) $(CFLAGS) -pthread -shared -Wl,-soname,$(SONAME) $(LDFLAGS) $(B)/lm.o $(LIB) -o $@ $(LIBS)
$(STATIC): $(LIB)
	$(Q)mkdir -p $(@D) && rm -f $@ && $(CC) -r -nostdlib $(B)/lm.o $(LIB) -o $(@D)/lm.o && \
	    objcopy --wildcard --keep-global-symbol='lm_*' $(@D)/lm.o && $(AR) qcs $@ $(@D)/lm.o

# The only files that may contain instructions beyond the baseline.
ifneq ($(filter x86_64-%,$(shell $(CC) -dumpmachine)),)
$(B)/%_avx2.o:   ISA = -mavx2 -mfma
$(B)/%_avx512.o: ISA = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
endif

# The runtime of nn once more, in double, for gradients to be checked with; only double_* is visible.
DOUBLE := $(patsubst %.c,$(B)/double/%.o,$(wildcard nn/graph.c nn/text.c nn/plan.c nn/group.c nn/layout.c \
                                                    nn/run.c nn/ops/*.c tests/double/*.c))
$(B)/double/%.o: %.c $(B)/flags
	$(Q)mkdir -p $(@D) && $(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) -include tests/double/double.h -MMD -MP -c $< -o $@
$(B)/double.o: $(DOUBLE)
	$(Q)$(CC) -r -nostdlib $^ -o $@ && objcopy --wildcard --keep-global-symbol='double_*' $@
$(B)/tests/test_grad: $(B)/double.o

# What the objects were made with, rewritten when it changes: everything follows the compiler and
# its flags, core_describe also the commit.
WITH   := $(strip $(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS))
COMMIT := $(shell test -e .git && git rev-parse --short HEAD 2>/dev/null || echo unknown)
note    = $(if $(filter-out $(file <$(1)),$(2))$(filter-out $(2),$(file <$(1))),$(shell mkdir -p $(B))$(file >$(1),$(2)))
$(call note,$(B)/flags,$(WITH))
$(call note,$(B)/commit,$(COMMIT))
$(B)/core/core.o: $(B)/commit
$(B)/core/core.o: ABOUT = -DBUILD_COMMIT='"$(COMMIT)"' -DBUILD_JPEG='"$(JPEG)"' -DBUILD_FLAGS='"$(subst ",,$(subst ',,$(WITH)))"'

test: $(B)/layermerge $(SHARED) $(STATIC) $(TESTS)
	@LAYERMERGE=$(B)/layermerge tests/run.sh tests/layers.sh $(TESTS) $(wildcard tests/test_*.sh)
# What a sanitizer finds ends the program with a status that no test can take for an answer. Many
# times as slow: longer may a test take, two run at a time, and what repeats the same for other numbers
# is left out.
asan tsan: export TEST_FEW = 1
asan tsan: export TEST_JOBS = 2
asan tsan: export TEST_SECONDS = 3600
asan: export ASAN_OPTIONS  = exitcode=99:allocator_may_return_null=1
asan: export UBSAN_OPTIONS = exitcode=99:print_stacktrace=1
tsan: export TSAN_OPTIONS  = exitcode=99
asan:
	$(MAKE) --no-print-directory test B=build/asan CFLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all'
tsan:
	$(MAKE) --no-print-directory test B=build/tsan CFLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=thread'
bench: $(BENCH)
	@for b in $(BENCH); do $$b || exit 1; done
# The main job on built-in images: a few minutes on two cores.
demo: deps
	@$(MAKE) --no-print-directory all
	./layermerge compress --model resnet20 --data builtin:shapes --speedup 1.5 --run runs/demo --batch 32 --rounds 11 \
	    --train-epochs 4 --train-batch 64 --train-images 320 --score-images 384 --epochs 3
install: $(B)/layermerge $(SHARED) $(STATIC)
	install -D -m 755 $< $(TO)/bin/layermerge
	install -D -m 644 layermerge.h $(TO)/include/layermerge.h
	install -D -m 644 $(STATIC) $(TO)/lib/liblayermerge.a
	install -D -m 755 $(SHARED) $(TO)/lib/$(SONAME)
	ln -sf $(SONAME) $(TO)/lib/liblayermerge.so
	mkdir -p $(TO)/lib/pkgconfig
	printf '%s\n' $(PC) > $(TO)/lib/pkgconfig/layermerge.pc
TO = $(DESTDIR)$(PREFIX)
# Found from where the file lies, so that a staged or moved installation works too.
PC = 'prefix=$${pcfiledir}/../..' 'Name: layermerge' 'Description: run networks that layermerge made' \
     'Version: $(shell sed -n 's/.*CORE_VERSION "\(.*\)".*/\1/p' core/core.h)' 'Cflags: -I$${prefix}/include' \
     'Libs: -L$${prefix}/lib -llayermerge' 'Libs.private: $(LIBS) -pthread'

# What does not compile or link, installed when we may and named when we may not. (A header alone
# proves nothing: every BLAS has a cblas.h.)
deps:
	@want() { printf '#include <stdio.h>\n#include <%s>\nint main(void) { return 0; }\n' "$$1" | \
	    $(CC) -x c - $$2 -o /dev/null >/dev/null 2>&1 || missing="$$missing $$3"; }; \
	[ $(BLAS) = none ] || want cblas.h -lopenblas libopenblas-dev; \
	[ $(JPEG) = stb ] || want jpeglib.h -ljpeg libjpeg-dev; \
	want zlib.h -lz zlib1g-dev; want stb/stb_image.h '' libstb-dev; \
	[ -n "$$missing" ] || exit 0; \
	if command -v apt-get >/dev/null; then \
	    if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; else sudo=no; fi; \
	    [ "$$sudo" = no ] || { $$sudo apt-get update -q && \
	        DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -q -y $$missing && exit 0; }; \
	fi; \
	echo "make deps: please install$$missing (Debian's names) and run it again" >&2; exit 1

clean:
	rm -rf build layermerge
.PHONY: all test asan tsan bench demo install deps clean
.SECONDARY:
-include $(shell find $(B) -name '*.d' 2>/dev/null)
