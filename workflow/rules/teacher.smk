"""The teacher, shared by all runs: trained here or loaded, and its pyramid fitted. Both are stages like any other."""

PRETRAINED = parts.pretrained_stages(PLAN)


rule teacher:
    input:
        lambda wildcards: parts.stage_inputs(PLAN, HOME, wildcards.stage),
        IMAGE_RECORD,
        # A number that is evaluated anew reruns the gate, which must not train everything anew.
        lambda wildcards: ancient(parts.gate_inputs(PLAN, HOME, wildcards.stage)),
    output:
        f"{HOME}/stages/{{stage}}/stage.json",
    log:
        f"{HOME}/logs/train/{{stage}}.log",
    benchmark:
        f"{HOME}/benchmarks/train/{{stage}}.jsonl"
    wildcard_constraints:
        stage=f"(?!(?:{PRETRAINED})(?:/|$))teacher-.+",
    # Over several nodes `srun` is outside of the container, which `cmapkd train` then starts on each node.
    container:
        IMAGE if LAYOUT.nodes == 1 else None
    # Cores on each node. One for each rank: small trainings use two cores best as two trainings side by side.
    threads: LAYOUT.ranks_per_node
    resources:
        **training_resources(LAYOUT, SITE, AVOIDED, EXTRA),
    params:
        depends=lambda wildcards: parts.train_params(PLAN, wildcards.stage),
        options=OPTIONS,
        label=lambda wildcards: PLAN.stages[wildcards.stage].label,
    message:
        "{params.label} ({wildcards.stage})"
    shell:
        "python -m cmapkd train {wildcards.stage:q} --threads {threads} {params.options} 2>&1 | tee -i {log:q}"


# Where there is a network, and on one process, whatever a training asks for.
use rule teacher as pretrained with:
    wildcard_constraints:
        stage=PRETRAINED,
    container:
        IMAGE
    threads: 1
    resources:
        mem_mb=8000,
    params:
        depends=lambda wildcards: {
            **parts.train_params(PLAN, wildcards.stage),
            # Weights named by path are inputs by their content.
            **parts.weights_params(PLAN, HOME, wildcards.stage),
        },
        options=OPTIONS,
        label=lambda wildcards: PLAN.stages[wildcards.stage].label,


rule teacher_gate:
    input:
        f"{HOME}/metrics/{parts.teacher_directory(PLAN)}.json",
    output:
        f"{HOME}/{parts.GATE}",
    log:
        f"{HOME}/logs/teacher/gate.log",
    params:
        depends=parts.gate_params(PLAN),
        options=OPTIONS,
    message:
        "Comparing the teacher with what is known of it"
    shell:
        "python -m cmapkd gate {params.options} 2>&1 | tee -i {log:q}"
