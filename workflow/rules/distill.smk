"""The stages of all runs. A stage is addressed by what went into it, so runs that agree so far share it."""


use rule teacher as train with:
    wildcard_constraints:
        stage="(?!teacher-).+",
    threads: 1


rule collect:
    input:
        lambda wildcards: parts.run_stages(PLAN, HOME, f"{wildcards.run}/{wildcards.seed}"),
    output:
        f"{HOME}/runs/{{run}}/{{seed}}/run.json",
    log:
        f"{HOME}/logs/collect/{{run}}-{{seed}}.log",
    params:
        code=fingerprint("cmapkd.runs"),
    message:
        "Collecting the result of {wildcards.run}, seed {wildcards.seed}"
    shell:
        "{CMAPKD} collect {wildcards.run:q}/{wildcards.seed} {OPTIONS} 2>&1 | tee -i {log:q}"
