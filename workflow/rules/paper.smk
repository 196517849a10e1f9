"""Metrics to paper. None of it needs torch; each table and figure depends on its own module alone."""


rule table:
    input:
        lambda wildcards: parts.table_inputs(PLAN, PAPER, HOME, wildcards.table),
    output:
        html=report(
            f"{HOME}/paper/{{table}}.html",
            category="Tables",
            caption="../report/table.rst",
            labels=parts.part_labels(PAPER, "page"),
        ),
        tex=report(
            f"{HOME}/paper/{{table}}.tex",
            category="Tables",
            caption="../report/table.rst",
            labels=parts.part_labels(PAPER, "source (LaTeX)"),
        ),
        json=f"{HOME}/paper/{{table}}.json",
    log:
        f"{HOME}/logs/paper/{{table}}.log",
    wildcard_constraints:
        table="|".join(parts.TABLES),
    params:
        title=lambda wildcards: parts.table_title(wildcards.table),
        depends=lambda wildcards: parts.table_params(PAPER, wildcards.table),
        options=OPTIONS,
    message:
        "{params.title}"
    shell:
        "python -m cmapkd paper table {wildcards.table} {params.options} 2>&1 | tee -i {log:q}"


rule figure:
    input:
        parts.metrics(PLAN, HOME),
        parts.arrays(PLAN, HOME),
    output:
        html=report(
            f"{HOME}/paper/{{figure}}.html",
            category="Figures",
            caption="../report/figure.rst",
            labels=parts.part_labels(PAPER, "page"),
        ),
        pdf=report(
            f"{HOME}/paper/{{figure}}.pdf",
            category="Figures",
            caption="../report/figure.rst",
            labels=parts.part_labels(PAPER, "print (PDF)"),
        ),
        png=f"{HOME}/paper/{{figure}}.png",
        json=f"{HOME}/paper/{{figure}}.json",
    log:
        f"{HOME}/logs/paper/{{figure}}.log",
    wildcard_constraints:
        figure="|".join(parts.FIGURES),
    params:
        title=lambda wildcards: parts.figure_title(wildcards.figure),
        depends=lambda wildcards: parts.figure_params(PAPER, wildcards.figure),
        options=OPTIONS,
    message:
        "{params.title}"
    shell:
        "python -m cmapkd paper figure {wildcards.figure} {params.options} 2>&1 | tee -i {log:q}"


rule document:
    input:
        expand(f"{HOME}/paper/{{part}}.json", part=PAPER.all_tables + PAPER.all_figures),
    output:
        tex=report(
            f"{HOME}/paper/paper.tex",
            category="Paper",
            caption="../report/paper.rst",
            labels={"file": "paper.tex", "about": "its source"},
        ),
        numbers=report(
            f"{HOME}/paper/numbers.tex",
            category="Paper",
            caption="../report/paper.rst",
            labels={"file": "numbers.tex", "about": "every number as a macro"},
        ),
    log:
        f"{HOME}/logs/paper/document.log",
    params:
        depends=parts.paper_params(PAPER, "cmapkd.paper.document", "cmapkd.paper.latex"),
        options=OPTIONS,
    message:
        "Document and macros"
    shell:
        "python -m cmapkd paper document {params.options} 2>&1 | tee -i {log:q}"


rule pdf:
    input:
        rules.document.output,
        expand(f"{HOME}/paper/{{table}}.tex", table=PAPER.all_tables),
        expand(f"{HOME}/paper/{{figure}}.pdf", figure=PAPER.all_figures),
    output:
        report(
            f"{HOME}/paper/paper.pdf",
            category="Paper",
            caption="../report/paper.rst",
            labels={"file": "paper.pdf", "about": "the paper"},
        ),
    log:
        f"{HOME}/logs/paper/pdf.log",
    params:
        code=fingerprint("cmapkd.paper.build"),
        options=OPTIONS,
    message:
        "Typesetting the paper"
    shell:
        "python -m cmapkd paper pdf {params.options} 2>&1 | tee -i {log:q}"
