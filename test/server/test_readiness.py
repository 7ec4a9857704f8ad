"""Ready when every model is, until the end."""

from internal.biz.models import Condition
from internal.server.readiness import Readiness, Standing

HERE = Standing(1, Condition())


def test_a_server_is_ready_when_every_model_is_loaded() -> None:
    readiness = Readiness(["a", "b"])
    assert not readiness.ready
    readiness.loaded("a", 1.0)
    assert not readiness.ready
    readiness.loaded("b", 0.456)
    assert readiness.report({"a": HERE, "b": HERE}) == {
        "status": "loading",
        "models": {"a": {"ready": True, "progress": 1.0}, "b": {"ready": False, "progress": 0.46}},
    }
    readiness.loaded("b", 1.0)
    assert readiness.ready
    assert readiness.report({"a": HERE, "b": HERE})["status"] == "ready"


def test_a_draining_server_is_not_ready() -> None:
    readiness = Readiness(["a"])
    readiness.loaded("a", 1.0)
    readiness.draining = True
    assert not readiness.ready
    assert readiness.report({"a": HERE})["status"] == "draining"


def test_models_that_run_elsewhere_are_listed_with_their_workers() -> None:
    readiness = Readiness([])
    assert readiness.ready
    models = readiness.report({"a": Standing(2, Condition()), "b": Standing()})["models"]
    assert isinstance(models, dict)
    assert models["a"] == {"ready": True, "workers": 2}
    assert (models["b"]["ready"], models["b"]["workers"]) == (False, 0)
    assert "no worker" in models["b"]["message"]
