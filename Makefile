# layermerge: build, test, measure. Knobs: CC= BLAS=openblas|none B=build/dir PREFIX= DESTDIR=
CC     ?= cc
CFLAGS ?= -O3 -g
PREFIX ?= /usr/local
BLAS   ?= openblas
B      ?= build/release

# Floats mean what the source says: no fast-math, no contraction behind our back.
FLAGS = -std=c11 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -I. -pthread -ffp-contract=off \
        -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wdouble-promotion
ifeq ($(BLAS),none)
FLAGS += -DBLAS_NONE
LIBS  = -lz -lm
else
LIBS  = -lopenblas -lz -lm
endif

CMD   := $(wildcard */cmd_*.c)
SRC   := $(filter-out $(CMD),$(wildcard core/*.c core/kern/*.c nn/*.c nn/ops/*.c nn/models/*.c \
                                        data/*.c train/*.c search/*.c))
TESTS := $(patsubst %.c,$(B)/%,$(wildcard tests/test_*.c))
BENCH := $(patsubst %.c,$(B)/%,$(wildcard bench/bench_*.c))
LIB   := $(B)/liblayermerge.a
obj    = $(patsubst %.c,$(B)/%.o,$(1))

all: layermerge
layermerge: $(B)/layermerge
	cp $< $@
$(B)/layermerge: $(call obj,main.c $(CMD)) $(LIB)
	$(CC) $(CFLAGS) -pthread $(LDFLAGS) $^ -o $@ $(LIBS)
$(LIB): $(call obj,$(SRC))
	rm -f $@ && $(AR) rcs $@ $^
$(TESTS) $(BENCH): $(B)/%: $(B)/%.o $(LIB)
	$(CC) $(CFLAGS) -pthread $(LDFLAGS) $^ -o $@ $(LIBS)
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) $(ISA) -MMD -MP -c $< -o $@

# The only files that may contain instructions beyond the baseline.
ifneq ($(filter x86_64-%,$(shell $(CC) -dumpmachine)),)
$(B)/core/kern/kern_avx2.o:   ISA = -mavx2 -mfma
$(B)/core/kern/kern_avx512.o: ISA = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
endif

clean:
	rm -rf build layermerge
.PHONY: all clean
.SECONDARY:
-include $(shell find $(B) -name '*.d' 2>/dev/null)
