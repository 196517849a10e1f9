"""Students to share: the runs that the key `export` names, none by default, in every form that their architecture permits."""


rule export:
    input:
        run=rules.collect.output,
        metrics=rules.evaluate.output,
    output:
        directory(f"{HOME}/export/{{run}}/{{seed}}"),
    log:
        f"{HOME}/logs/export/{{run}}-{{seed}}.log",
    params:
        code=fingerprint("cmapkd.export.write"),
        options=OPTIONS,
    message:
        "Exporting {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m cmapkd export {wildcards.run:q}/{wildcards.seed} --to {output:q} --overwrite {params.options} 2>&1 | tee -i {log:q}"
