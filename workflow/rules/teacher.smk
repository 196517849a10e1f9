"""The teacher, shared by all runs: trained here or loaded, and its pyramid fitted. Both are stages like any other."""


rule teacher:
    input:
        lambda wildcards: parts.stage_inputs(PLAN, HOME, wildcards.stage),
    output:
        f"{HOME}/stages/{{stage}}/stage.json",
    log:
        f"{HOME}/logs/train/{{stage}}.log",
    benchmark:
        f"{HOME}/benchmarks/train/{{stage}}.jsonl"
    wildcard_constraints:
        stage="teacher-.+",
    threads: 2
    params:
        depends=lambda wildcards: parts.train_params(PLAN, wildcards.stage),
        label=lambda wildcards: PLAN.stages[wildcards.stage].label,
    message:
        "{params.label} ({wildcards.stage})"
    shell:
        "{CMAPKD} train {wildcards.stage:q} --threads {threads} {OPTIONS} 2>&1 | tee -i {log:q}"
