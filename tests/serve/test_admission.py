import pytest

from foveal.core.errors import ConfigError
from foveal.serve.admission import Denied, Keys, Places
from foveal.serve.options import ServeOptions


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic secret", "secret", "Bearer secre", "Bearer secrett",
        "Bearer \xff", "Bearer secret extra",
    ],
)  # fmt: skip
def test_wrong_keys_do_not_open(header):
    assert not Keys(["secret", "other"]).admit(header)


@pytest.mark.parametrize("header", ["Bearer secret", "bearer other", "BEARER  secret "])
def test_keys_open(header):
    assert Keys(["secret", "other"]).admit(header)


def test_places_are_counted_and_given_back():
    places = Places(1, 1)
    with places.take(), places.take() as second:
        with pytest.raises(Denied) as denied, places.take():
            pass
        assert denied.value.status == 429
        assert denied.value.retry_s >= 1
        with pytest.raises(Denied):
            second.grow(1)
    assert places.taken == 0
    assert places.refused == 2
    with places.take() as alone:
        alone.grow(7)  # more than there is room for, but nobody else is there
    assert places.taken == 0
    places.draining = True
    with pytest.raises(Denied) as stopping, places.take():
        pass
    assert stopping.value.status == 503


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "without a key"),
        ({"host": "::"}, "without a key"),
        ({"host": "192.168.0.7"}, "without a key"),
        ({"host": "my.host"}, "without a key"),
        ({"api_keys": ("",)}, "API key"),
        ({"api_keys": (" a",)}, "API key"),
        ({"api_keys": ("ü",)}, "API key"),
        ({"port": 70_000}, "port"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"request_s": 0}, "request_s"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"limit_mm_per_prompt": {"audio": 1}}, "limit_mm_per_prompt"),
        ({"limit_mm_per_prompt": {"image": True}}, "limit_mm_per_prompt"),
    ],
)
def test_unsafe_or_wrong_settings_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        ServeOptions(**settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_needs_no_key(host):
    ServeOptions(host=host)
    ServeOptions(host="0.0.0.0", api_keys=("secret",))
