import pickle

from lookalike import errors


def test_an_error_says_fact_allowed_and_remedy() -> None:
    error = errors.DataError("k is 3.", allowed="1 or 2", remedy="Lower it.")
    assert str(error) == "k is 3. Allowed: 1 or 2. Lower it."
    assert error.exit_code == 3


def test_errors_travel_between_processes() -> None:
    for error in (
        errors.ConfigError("a", allowed="b", remedy="c"),
        errors.ImageError("empty", "the image has 0 bytes"),
        errors.GateError("refused", rows=[("a", "b", "c", "d")]),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__


def test_an_error_is_found_in_another_processs_traceback() -> None:
    said = "Traceback ...\n  line\nlookalike.errors.DataError: k is 3. Lower it.\n\tat java"
    found = errors.raised_in(said)
    assert type(found) is errors.DataError
    assert str(found) == "k is 3. Lower it."
    assert errors.raised_in("ValueError: no") is None


def test_addresses_are_told_without_their_secrets() -> None:
    assert errors.scrubbed("https://me:word@host/a?sig=1") == "https://***@host/a?***"
    assert errors.scrubbed("s3://key:secret@bucket/a") == "s3://***@bucket/a"
    container = "abfss://images@shop.dfs.core.windows.net/a"
    assert errors.scrubbed(container) == container
