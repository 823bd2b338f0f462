"""What stands in the help of every command; the test suite runs the examples."""

_RUNS = "runs/cars runs/dtd runs/svhn"
_WITH_MODEL = f"{_RUNS} --base base --data data"

EXAMPLES = {
    "": (
        f"jaxmerge plan {_RUNS}",
        f"jaxmerge merge {_RUNS} -p tsv_m --heads keep --out merged",
        "jaxmerge verify merged",
    ),
    "plan": (f"jaxmerge plan {_RUNS}",),
    "inspect": (
        f"jaxmerge inspect {_RUNS}",
        f"jaxmerge inspect {_RUNS} --html report.html",
    ),
    "check": (f"jaxmerge check {_WITH_MODEL}",),
    "cluster": (f"jaxmerge cluster {_RUNS} --groups 2",),
    "methods": ("jaxmerge methods",),
    "merge": (
        f"jaxmerge merge {_RUNS} -p tsv_m --heads keep --out merged",
        f'jaxmerge merge {_RUNS} -p "concat|pico" --heads keep --out other',
        f"jaxmerge merge {_RUNS} -p knots_ties --heads keep --out third --dry-run",
    ),
    "run": (
        "jaxmerge run recipe.yaml --out from_recipe",
        "jaxmerge run merged --out again",
        "jaxmerge run merged --print",
    ),
    "collect": (f"jaxmerge collect {_WITH_MODEL} --out stats",),
    "learn": (
        f'jaxmerge learn {_WITH_MODEL} --pipeline "tara_b(initial=0.3)|calibrate" '
        "--preference 0.5,0.3,0.2 --steps 20 --out learned",
    ),
    "tune": (
        f"jaxmerge tune {_WITH_MODEL} -p tsv_m --out tuned",
        f"jaxmerge tune {_WITH_MODEL} "
        '-p "ties(density={0.2, 0.6})|core|scale({0.2:2})" --search grid --points 3',
    ),
    "verify": ("jaxmerge verify merged",),
    "evaluate": ("jaxmerge evaluate learned --base base --data data",),
    "push": ("jaxmerge push merged owner/merged --dry-run",),
    "convert": (f"jaxmerge convert {_RUNS} --out checkpoint",),
    "compress": (
        f"jaxmerge compress {_RUNS} --out compressed",
        f"jaxmerge compress {_RUNS} --rank 4 --plot compressed.png --out smaller",
    ),
    "restore": ("jaxmerge restore compressed --adapter dtd --out restored",),
    "bake": ("jaxmerge bake runs/cars --base base --new-heads --out baked",),
    "extract": (
        "jaxmerge extract baked --base base --rank 4 --others save --out extracted",
    ),
}


def examples(command: str) -> str:
    """The examples of a command as the end of its help."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])
