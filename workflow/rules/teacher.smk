"""The teacher, shared by all runs: trained here or loaded, and its pyramid fitted. Both are stages like any other."""


rule teacher:
    input:
        lambda wildcards: parts.stage_inputs(PLAN, HOME, f"teacher-{wildcards.digest}"),
    output:
        f"{HOME}/stages/teacher-{{digest}}/stage.json",
    params:
        depends=lambda wildcards: parts.train_params(PLAN, f"teacher-{wildcards.digest}"),
    threads: workflow.cores
    log:
        f"{HOME}/logs/train/teacher-{{digest}}.log",
    benchmark:
        f"{HOME}/benchmarks/train/teacher-{{digest}}.jsonl"
    message:
        "Teacher ({wildcards.digest})"
    shell:
        "{CMAPKD} train teacher-{wildcards.digest} --threads {threads} {OPTIONS} 2>&1 | tee {log:q}"


use rule teacher as teacher_pyramid with:
    input:
        lambda wildcards: parts.stage_inputs(PLAN, HOME, f"teacher-pyramid-{wildcards.digest}"),
    output:
        f"{HOME}/stages/teacher-pyramid-{{digest}}/stage.json",
