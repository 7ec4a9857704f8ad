"""Ready when every model is, until the end."""

from internal.server.readiness import Readiness


def test_a_server_is_ready_when_every_model_is_loaded() -> None:
    readiness = Readiness(["a", "b"])
    assert not readiness.ready
    readiness.loaded("a", 1.0)
    assert not readiness.ready
    readiness.loaded("b", 0.456)
    assert readiness.report() == {
        "status": "loading",
        "models": {"a": {"ready": True, "progress": 1.0}, "b": {"ready": False, "progress": 0.46}},
    }
    readiness.loaded("b", 1.0)
    assert readiness.ready
    assert readiness.report()["status"] == "ready"


def test_a_draining_server_is_not_ready() -> None:
    readiness = Readiness(["a"])
    readiness.loaded("a", 1.0)
    readiness.draining = True
    assert not readiness.ready
    assert readiness.report()["status"] == "draining"
