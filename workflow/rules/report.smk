"""Pages of the report that are no part of the paper: runs, data sets, logs. `snakemake --report` puts everything together."""


rule run_page:
    input:
        run=rules.collect.output,
        metrics=rules.evaluate.output,
    output:
        report(
            f"{HOME}/report/runs/{{run}}/{{seed}}.html",
            category="Runs",
            caption="../report/run.rst",
            labels=lambda wildcards: {
                "run": parts.run_title(PLAN, f"{wildcards.run}/{wildcards.seed}"),
                "seed": wildcards.seed,
            },
        ),
    log:
        f"{HOME}/logs/report/{{run}}-{{seed}}.log",
    params:
        depends=lambda wildcards: parts.run_page_params(PLAN, PAPER, f"{wildcards.run}/{wildcards.seed}"),
        options=OPTIONS,
    message:
        "Page of {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m cmapkd report run {wildcards.run:q}/{wildcards.seed} {output:q} {params.options} 2>&1 | tee -i {log:q}"


rule data_page:
    input:
        f"{HOME}/data/{{dataset}}/manifest.json",
    output:
        report(
            f"{HOME}/report/data/{{dataset}}.html",
            category="Data",
            caption="../report/data.rst",
            labels={"data set": "{dataset}", "split": "all of it"},
        ),
    log:
        f"{HOME}/logs/report/data-{{dataset}}.log",
    params:
        code=fingerprint("cmapkd.paper.log_page"),
        options=OPTIONS,
    message:
        "Page of {wildcards.dataset}"
    shell:
        "python -m cmapkd report data {wildcards.dataset:q} {output:q} {params.options} 2>&1 | tee -i {log:q}"


# Logs are no outputs, and the report takes only outputs: one job copies them into pages.
rule log_pages:
    input:
        parts.log_inputs(PLAN, HOME),
    output:
        report(
            directory(f"{HOME}/report/logs"),
            patterns=["{step}/{name}.html"],
            category="Logs",
            caption="../report/log.rst",
            labels=lambda wildcards: {
                "step": wildcards.step,
                "of": parts.log_title(PLAN, wildcards.step, wildcards.name),
            },
        ),
    log:
        f"{HOME}/logs/report/logs.log",
    params:
        depends=parts.log_params(PLAN),
        options=OPTIONS,
    message:
        "Pages of all logs"
    shell:
        "python -m cmapkd report logs {output:q} {params.options} 2>&1 | tee -i {log:q}"
