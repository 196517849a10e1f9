"""The teacher, shared by all runs: trained here or loaded, and its pyramid fitted. Both are stages like any other."""


rule teacher:
    input:
        lambda wildcards: parts.stage_inputs(PLAN, HOME, wildcards.stage),
        IMAGE_RECORD,
    output:
        f"{HOME}/stages/{{stage}}/stage.json",
    log:
        f"{HOME}/logs/train/{{stage}}.log",
    benchmark:
        f"{HOME}/benchmarks/train/{{stage}}.jsonl"
    wildcard_constraints:
        stage="teacher-.+",
    # Over several nodes `srun` is outside of the container, which `cmapkd train` then starts on each node.
    container:
        IMAGE if LAYOUT.nodes == 1 else None
    # Cores on each node. One for each rank: small trainings use two cores best as two trainings side by side.
    threads: LAYOUT.ranks_per_node
    resources:
        **training_resources(LAYOUT, SITE, AVOIDED),
    params:
        depends=lambda wildcards: parts.train_params(PLAN, wildcards.stage),
        options=OPTIONS,
        label=lambda wildcards: PLAN.stages[wildcards.stage].label,
    message:
        "{params.label} ({wildcards.stage})"
    shell:
        "python -m cmapkd train {wildcards.stage:q} --threads {threads} {params.options} 2>&1 | tee -i {log:q}"
