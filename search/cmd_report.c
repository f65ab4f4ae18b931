/* layermerge report: a run folder → report.html and report.svg, beside report.json. */
#include "core/cli.h"
#include "search/search.h"

#include <stdio.h>

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)opt;
    char path[4096];
    buf text = { 0 };
    if (n_word != 1) return err_set(e, ERR_USAGE, "report wants one run folder");
    snprintf(path, sizeof path, "%s/report.json", word[0]);
    bool ok = search_report(word[0], e) && (!c->json || file_read(path, &text, e));
    if (ok && c->json) fputs(text.data, stdout);
    else if (ok) printf("%s/report.html\n", word[0]);
    buf_free(&text);
    return ok;
}

const cli_verb cmd_report = { "report", "make the page of a compress or train run", NULL, 0, 0, "RUN folder", run };
