"""The stages of all runs. A stage is addressed by what went into it, so runs that agree so far share it."""


use rule teacher as train with:
    wildcard_constraints:
        stage=f"(?!teacher-|(?:{PRETRAINED})(?:/|$)).+",


rule collect:
    input:
        lambda wildcards: parts.run_stages(PLAN, HOME, f"{wildcards.run}/{wildcards.seed}"),
    output:
        f"{HOME}/runs/{{run}}/{{seed}}/run.json",
    log:
        f"{HOME}/logs/collect/{{run}}-{{seed}}.log",
    params:
        code=fingerprint("cmapkd.runs"),
        options=OPTIONS,
    message:
        "Collecting the result of {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m cmapkd collect {wildcards.run:q}/{wildcards.seed} {params.options} 2>&1 | tee -i {log:q}"
