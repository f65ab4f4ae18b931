/* layermerge: the table of contents. Each verb is one cmd_<verb>.c, in the folder of the highest
 * layer it needs; a new one is a line here. */
#include "core/cli.h"

#define VERBS(X) \
    X(train) \
    X(eval) \
    X(predict) \
    X(run) \
    X(import) \
    X(export) \
    X(inspect) \
    X(latency) \
    X(importance) \
    X(solve) \
    X(merge) \
    X(bench) \
    X(compress) \
    X(report) \
    X(data)

#define DECLARE(name) extern const cli_verb cmd_##name;
VERBS(DECLARE)

#define ADDRESS(name) &cmd_##name,
static const cli_verb *const verb[] = { VERBS(ADDRESS) NULL };

int main(int argc, char **argv) { return cli_main(argc, argv, verb, CLI_COUNT(verb) - 1); }
