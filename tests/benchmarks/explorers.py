"""How long a slider change takes, kernel side: an explorer beside `interact` with a new figure, in one kernel.

    python tests/benchmarks/explorers.py

Both show the same picture of the same numbers. The changes alternate between the two, so that a busy machine slows
both. Explorers that train are left out: there the training takes the time, not the picture.
"""

import nbformat
from nbclient import NotebookClient

SETUP = """
%matplotlib inline
import importlib, itertools, pkgutil, statistics, time
from IPython.display import display
from ipywidgets import interact
from lora_edu import explorers
from lora_edu.explorers.live import LiveExplorer

def timed(control, value):
    start = time.perf_counter()
    control.value = value
    return 1000 * (time.perf_counter() - start)

def values(control):
    if hasattr(control, "options"):
        return [option if isinstance(option, str) else option[1] for option in control.options]
    return [control.min + (control.max - control.min) * i / 20 for i in range(21)]

def new_figure_each_time(explorer):
    def show(**state):
        picture = explorer.new_picture(explorer.compute(**state))
        for artist in picture.moving:
            artist.set_animated(False)
        display(picture.figure)  # what plt.show() does under the inline backend
    return show
"""

RUN = """
print(f"{'explorer':24}{'interact':>10}{'explorer':>10}  (median ms)   ratio   95 % of the changes under")
ratios = []
for module in pkgutil.iter_modules(explorers.__path__):
    chapter = importlib.import_module(f"lora_edu.explorers.{module.name}")
    for name in getattr(chapter, "__all__", []):
        explorer, controls = getattr(chapter, name)(), getattr(chapter, name)().controls
        if isinstance(explorer, LiveExplorer):
            continue
        interact(new_figure_each_time(explorer), **controls)
        moved = max(controls, key=lambda key: len(values(controls[key])))
        for value in values(controls[moved]):  # what can be cached is cached, for both
            explorer.controls[moved].value = value
        ours, theirs = [], []
        for value in itertools.islice(itertools.cycle(values(explorer.controls[moved])), 1, 31):
            theirs.append(timed(controls[moved], value))
            ours.append(timed(explorer.controls[moved], value))
        mine, other = statistics.median(ours), statistics.median(theirs)
        ratios.append(other / mine)
        slow = sorted(ours)[int(0.95 * len(ours))]
        print(f"{module.name + ' ' + name:24}{other:10.0f}{mine:10.0f}{'':14}{other / mine:8.1f}x{slow:10.0f} ms")
print(f"median ratio {statistics.median(ratios):.1f}, smallest {min(ratios):.1f}")
"""


def main():
    """Run the comparison in a fresh kernel and print its table."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SETUP), nbformat.v4.new_code_cell(RUN)])
    NotebookClient(notebook, timeout=600).execute()
    print("".join(output["text"] for output in notebook.cells[1].outputs if output.output_type == "stream"))


if __name__ == "__main__":
    main()
