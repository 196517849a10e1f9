"""The stages of all runs. A stage is addressed by what went into it, so runs that agree so far share it."""


rule train:
    input:
        lambda wildcards: parts.stage_inputs(PLAN, HOME, wildcards.stage),
    output:
        f"{HOME}/stages/{{stage}}/stage.json",
    wildcard_constraints:
        stage="(?!teacher-)[^/]+",
    params:
        depends=lambda wildcards: parts.train_params(PLAN, wildcards.stage),
        label=lambda wildcards: PLAN.stages[wildcards.stage].label,
    log:
        f"{HOME}/logs/train/{{stage}}.log",
    benchmark:
        f"{HOME}/benchmarks/train/{{stage}}.jsonl"
    message:
        "{params.label} ({wildcards.stage})"
    shell:
        "{CMAPKD} train {wildcards.stage:q} --threads {threads} {OPTIONS} 2>&1 | tee {log:q}"


rule collect:
    input:
        lambda wildcards: parts.run_stages(PLAN, HOME, f"{wildcards.run}/{wildcards.seed}"),
    output:
        f"{HOME}/runs/{{run}}/{{seed}}/run.json",
    params:
        code=fingerprint("cmapkd.runs"),
    log:
        f"{HOME}/logs/collect/{{run}}-{{seed}}.log",
    message:
        "Collecting the result of {wildcards.run}, seed {wildcards.seed}"
    shell:
        "{CMAPKD} collect {wildcards.run:q}/{wildcards.seed} {OPTIONS} 2>&1 | tee {log:q}"
