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
        figure=parts.figure_names(drawings=False),
    params:
        title=lambda wildcards: parts.figure_title(wildcards.figure),
        depends=lambda wildcards: parts.figure_params(PAPER, wildcards.figure),
        options=OPTIONS,
    message:
        "{params.title}"
    shell:
        "python -m cmapkd paper figure {wildcards.figure} {params.options} 2>&1 | tee -i {log:q}"


rule drawing:
    output:
        # Where there is no LaTeX, a drawing is its source alone.
        **(
            {
                "pdf": report(
                    f"{HOME}/paper/{{figure}}.pdf",
                    category="Figures",
                    caption="../report/figure.rst",
                    labels=parts.part_labels(PAPER, "print (PDF)"),
                ),
                "png": f"{HOME}/paper/{{figure}}.png",
            }
            if LATEX
            else {}
        ),
        html=report(
            f"{HOME}/paper/{{figure}}.html",
            category="Figures",
            caption="../report/figure.rst",
            labels=parts.part_labels(PAPER, "page"),
        ),
        tex=f"{HOME}/paper/{{figure}}.tex",
        json=f"{HOME}/paper/{{figure}}.json",
    log:
        f"{HOME}/logs/paper/{{figure}}.log",
    wildcard_constraints:
        figure=parts.figure_names(drawings=True),
    params:
        title=lambda wildcards: parts.figure_title(wildcards.figure),
        depends=lambda wildcards: parts.figure_params(PAPER, wildcards.figure),
        options=OPTIONS,
    message:
        "{params.title}"
    shell:
        "python -m cmapkd paper figure {wildcards.figure} {params.options} 2>&1 | tee -i {log:q}"


rule algorithm:
    output:
        tex=report(
            f"{HOME}/paper/algorithm{{number}}.tex",
            category="Algorithms",
            caption="../report/algorithm.rst",
            labels=parts.part_labels(PAPER, "LaTeX"),
        ),
        json=f"{HOME}/paper/algorithm{{number}}.json",
    log:
        f"{HOME}/logs/paper/algorithm{{number}}.log",
    params:
        depends=lambda wildcards: parts.algorithm_params(PAPER, f"algorithm{wildcards.number}"),
        options=OPTIONS,
    message:
        "Algorithm {wildcards.number}"
    shell:
        "python -m cmapkd paper algorithm algorithm{wildcards.number} {params.options} 2>&1 | tee -i {log:q}"


rule document:
    input:
        expand(f"{HOME}/paper/{{part}}.json", part=PAPER.all_parts),
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
        depends=parts.paper_params(PAPER, "cmapkd.paper.document", "cmapkd.paper.names"),
        options=OPTIONS,
    message:
        "Document and macros"
    shell:
        "python -m cmapkd paper document {params.options} 2>&1 | tee -i {log:q}"


rule pdf:
    input:
        rules.document.output,
        expand(f"{HOME}/paper/{{part}}.tex", part=PAPER.all_tables + PAPER.algorithms),
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


rule manuscript:
    input:
        MANUSCRIPT,
        rules.document.output.numbers,
        expand(f"{HOME}/paper/{{part}}.tex", part=PAPER.all_tables + PAPER.algorithms),
        expand(f"{HOME}/paper/{{figure}}.pdf", figure=PAPER.all_figures),
    output:
        report(
            f"{HOME}/paper/manuscript.pdf",
            category="Paper",
            caption="../report/paper.rst",
            labels={"file": "manuscript.pdf", "about": "the article"},
        ),
    log:
        f"{HOME}/logs/paper/manuscript.log",
    params:
        code=fingerprint("cmapkd.paper.manuscript"),
        options=OPTIONS,
    message:
        "Typesetting the manuscript"
    shell:
        "python -m cmapkd paper manuscript {params.options} 2>&1 | tee -i {log:q}"
