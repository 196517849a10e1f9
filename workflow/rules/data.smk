"""Source to shards: fetch, build, look."""


rule data_fetch:
    output:
        f"{HOME}/data/{{dataset}}.fetched.json",
    log:
        f"{HOME}/logs/data/fetch-{{dataset}}.log",
    # Not in the image, for this machine's network: its proxies, certificates and credentials. (Lint wants one to be named.)
    container:
        None if DEPLOYED else IMAGE
    params:
        depends=lambda wildcards: parts.dataset_params(EXPERIMENT, wildcards.dataset),
        options=OPTIONS,
    message:
        "Fetching what {wildcards.dataset} is made from"
    shell:
        "python -m cmapkd data fetch {wildcards.dataset:q} {params.options} 2>&1 | tee -i {log:q}"


rule data_overlap:
    input:
        parts.overlap_sources(EXPERIMENT, HOME),
        IMAGE_RECORD,
    output:
        f"{HOME}/data/overlap.json",
    log:
        f"{HOME}/logs/data/overlap.log",
    params:
        depends=parts.overlap_params(EXPERIMENT),
        options=OPTIONS,
    message:
        "Comparing the pictures of distillation splits with those of evaluation splits"
    shell:
        "python -m cmapkd data overlap {params.options} 2>&1 | tee -i {log:q}"


rule data_build:
    input:
        rules.data_fetch.output,
        lambda wildcards: parts.overlap_inputs(EXPERIMENT, HOME, wildcards.dataset),
        IMAGE_RECORD,
    output:
        f"{HOME}/data/{{dataset}}/manifest.json",
    log:
        f"{HOME}/logs/data/build-{{dataset}}.log",
    benchmark:
        f"{HOME}/benchmarks/data/{{dataset}}.jsonl"
    params:
        depends=lambda wildcards: parts.dataset_params(EXPERIMENT, wildcards.dataset),
        options=OPTIONS,
    message:
        "Writing the shards of {wildcards.dataset}"
    shell:
        "python -m cmapkd data build {wildcards.dataset:q} {params.options} 2>&1 | tee -i {log:q}"


rule contact_sheet:
    input:
        f"{HOME}/data/{{dataset}}/manifest.json",
    output:
        report(
            f"{HOME}/contact/{{dataset}}/{{split}}.png",
            category="Data",
            caption="../report/contact.rst",
            labels={"data set": "{dataset}", "split": "{split}"},
        ),
    log:
        f"{HOME}/logs/data/contact-{{dataset}}-{{split}}.log",
    params:
        code=fingerprint("cmapkd.data.contact"),
        options=OPTIONS,
    message:
        "Drawing a contact sheet of {wildcards.dataset}/{wildcards.split}"
    shell:
        "python -m cmapkd data contact {wildcards.dataset:q} {wildcards.split:q} {output:q} {params.options} 2>&1 | tee -i {log:q}"
