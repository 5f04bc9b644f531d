import pytest

from tests.helpers import checkpoints
from tests.helpers.scripted import say


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny random checkpoint."""
    return checkpoints.write(checkpoints.oracle(seed=2), tmp_path_factory.mktemp("model"))


@pytest.fixture
def talking(monkeypatch):
    """Makes every model that a command loads say the given words."""
    from foveal.engine import model

    load = model.load

    def script(words, again=False):
        def scripted(*args, **kwargs):
            made = load(*args, **kwargs)
            say(made, words, again=again)
            return made

        monkeypatch.setattr(model, "load", scripted)

    return script
