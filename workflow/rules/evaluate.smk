"""Student to metrics: retrieval, zero-shot classification, visual questions, efficiency."""


rule evaluate:
    input:
        run=rules.collect.output,
        data=parts.evaluation_inputs(EXPERIMENT, HOME),
        levels=lambda wildcards: parts.level_inputs(PLAN, HOME, f"{wildcards.run}/{wildcards.seed}"),
        image=IMAGE_RECORD,
    output:
        metrics=f"{HOME}/metrics/{{run}}/{{seed}}.json",
        arrays=f"{HOME}/metrics/{{run}}/{{seed}}.npz",
    log:
        f"{HOME}/logs/evaluate/{{run}}-{{seed}}.log",
    benchmark:
        f"{HOME}/benchmarks/evaluate/{{run}}-{{seed}}.jsonl"
    # Latency is among the numbers: nothing else runs beside it.
    threads: all_cores()
    resources:
        **gpu_resources(SITE, 1, EXTRA),
    params:
        depends=lambda wildcards: parts.evaluation_params(PLAN, f"{wildcards.run}/{wildcards.seed}"),
        options=OPTIONS,
    message:
        "Evaluating {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m cmapkd evaluate {wildcards.run:q}/{wildcards.seed} --threads {threads} {params.options} 2>&1 | tee -i {log:q}"
