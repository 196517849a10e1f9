"""Metrics to paper. None of it needs torch; each table and figure depends on its own module alone."""


rule table:
    input:
        lambda wildcards: parts.table_inputs(PLAN, PAPER, HOME, wildcards.table),
    output:
        tex=report(f"{HOME}/paper/{{table}}.tex", category="Tables", caption="../report/table.rst", labels={"table": "{table}"}),
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
        pdf=report(
            f"{HOME}/paper/figure{{number}}.pdf",
            category="Figures",
            caption="../report/figure.rst",
            labels={"figure": "{number}"},
        ),
        json=f"{HOME}/paper/figure{{number}}.json",
    log:
        f"{HOME}/logs/paper/figure{{number}}.log",
    wildcard_constraints:
        number=parts.figure_numbers(drawings=False),
    params:
        depends=lambda wildcards: parts.figure_params(PAPER, f"figure{wildcards.number}"),
        options=OPTIONS,
    message:
        "Figure {wildcards.number}"
    shell:
        "python -m cmapkd paper figure figure{wildcards.number} {params.options} 2>&1 | tee -i {log:q}"


rule drawing:
    output:
        # Where there is no LaTeX, a drawing is its source alone.
        **({"pdf": f"{HOME}/paper/figure{{number}}.pdf"} if LATEX else {}),
        tex=f"{HOME}/paper/figure{{number}}.tex",
        json=f"{HOME}/paper/figure{{number}}.json",
    log:
        f"{HOME}/logs/paper/figure{{number}}.log",
    wildcard_constraints:
        number=parts.figure_numbers(drawings=True),
    params:
        depends=lambda wildcards: parts.figure_params(PAPER, f"figure{wildcards.number}"),
        options=OPTIONS,
    message:
        "Figure {wildcards.number}"
    shell:
        "python -m cmapkd paper figure figure{wildcards.number} {params.options} 2>&1 | tee -i {log:q}"


rule algorithm:
    output:
        tex=f"{HOME}/paper/algorithm{{number}}.tex",
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
        expand(f"{HOME}/paper/{{part}}.json", part=PAPER.all_tables + PAPER.figures + PAPER.algorithms),
    output:
        tex=f"{HOME}/paper/paper.tex",
        numbers=f"{HOME}/paper/numbers.tex",
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
        expand(f"{HOME}/paper/{{figure}}.pdf", figure=PAPER.figures),
    output:
        report(f"{HOME}/paper/paper.pdf", category="Paper", caption="../report/paper.rst"),
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
        expand(f"{HOME}/paper/{{figure}}.pdf", figure=PAPER.figures),
    output:
        report(f"{HOME}/paper/manuscript.pdf", category="Paper", caption="../report/paper.rst"),
    log:
        f"{HOME}/logs/paper/manuscript.log",
    params:
        code=fingerprint("cmapkd.paper.manuscript"),
        options=OPTIONS,
    message:
        "Typesetting the manuscript"
    shell:
        "python -m cmapkd paper manuscript {params.options} 2>&1 | tee -i {log:q}"
