"Every notebook runs, and prints what it has kept."

import json

import pytest
from run_notebooks import alike, execute, notebooks, pool


@pytest.fixture(scope="module")
def complaints(request):
    "For each selected notebook what there is to complain about; all of them are under way at once."
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    paths = {spec.params["notebook"] for spec in specs if spec and "notebook" in spec.params}
    with pool() as threads:
        yield {path: threads.submit(execute, path, "--check") for path in sorted(paths)}


@pytest.mark.parametrize("notebook", notebooks(), ids=lambda path: path.stem)
def test_notebook_runs_and_prints_what_it_kept(notebook, complaints):
    if complaint := complaints[notebook].result():
        pytest.fail(f"{complaint}\nIf this is right, `make run` will keep it.", pytrace=False)


@pytest.mark.parametrize(
    "sources, complaint",
    [
        (["print(1)"], ""),
        (["#| slow\n1 / 0", "#| eval: false\n1 / 0", "nbdev.nbdev_export()"], ""),
        (["print(2)"], "-1\n+2\n"),
        (["pass"], "-[stdout]\n-1\n"),
        (["print(1)", "1 / 0"], "cell 1 failed"),
    ],
    ids=["same", "skipped", "other", "silent", "failing"],
)
def test_a_notebook_that_fails_or_prints_something_else_is_noticed(sources, complaint, tmp_path):
    kept = [{"name": "stdout", "output_type": "stream", "text": ["1\n"]}]
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": kept}
    cells = [cell | {"id": str(i), "source": source} for i, source in enumerate(sources)]
    path = tmp_path / "00_sample.ipynb"
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_path = x\ntst_flags = slow\n")
    found = execute(path, "--check")
    assert complaint in found and bool(complaint) == bool(found)


def test_outputs_are_compared_by_their_words_and_numbers():
    assert alike("loss 0.5001 [ 1. -2.]", "loss 0.5002 [1. -2.]")
    assert alike("error 1.2e-08", "error 3e-9")
    assert not alike("loss 0.50", "loss 0.53")
    assert not alike("7 wrong", "8 wrong")
    assert not alike("a\nb", "a b")
