"""Draw the throughput of a ``bench batch`` over the number of texts spoken at a time; needs matplotlib.

python scripts/plot_batch.py FILE.json OUT.svg
"""

import json
import statistics
import sys

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tts_compile"  # the same file for the same figures
from matplotlib import pyplot as plt  # noqa: E402 - after the choice of a backend


def main(source, target):
    """One panel: tokens a second over size, and the rate of the token loop one text after the other."""
    with open(source, encoding="utf-8") as file:
        result = json.load(file)

    def rate(side):
        return statistics.median(sum(map(len, side["tokens"])) / seconds for seconds in side["t3"])

    sizes = [int(size) for size in result["by_size"]]
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(sizes, [rate(side) for side in result["by_size"].values()], "o-", label="generate_batch")
    axes.axhline(rate(result["sides"]["row"]), linestyle="--", color="C1", label="compiled generate, in a row")
    if "stock" in result["sides"]:
        axes.axhline(rate(result["sides"]["stock"]), linestyle=":", color="C2", label="stock generate, in a row")
    axes.set(xlabel="texts at a time", ylabel="T3, speech tokens a second", xticks=sizes, ylim=(0, None))
    axes.set_title(f"{result['model']['device']}, {result['model']['dtype']}", fontsize="small")
    axes.legend(loc="center right")
    axes.grid(alpha=0.3)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
