"""The API's token file and its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.api.options import ApiOptions
from deploy.api.token import TokenFile, write_token


def test_a_token_file_that_is_gone_lets_nobody_in(tmp_path: Path) -> None:
    path, now = tmp_path / "token", [0.0]
    first = write_token(path)
    token = TokenFile(path, clock=lambda: now[0])
    assert token.matches(first.encode())
    assert not token.matches(b"")
    path.unlink()
    now[0] = 1.0
    assert not token.matches(first.encode())
    assert not token.matches(b"")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TEMPERA_API_PORT": "http"}, "TEMPERA_API_PORT must be a number"),
        ({"TEMPERA_API_PORT": "99999"}, r"must be in 0\.\.65535"),
        ({"TEMPERA_API_TOKEN": "short"}, "16 or more"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as failure:
        ApiOptions.from_environment(variables)
    assert "short" not in str(failure.value)
    assert ApiOptions(bind="0.0.0.0").own_name == "127.0.0.1"
    assert ApiOptions(bind="::1").own_name == "[::1]"
    assert "10.0.0.5" in ApiOptions(bind="10.0.0.5").hosts
    good = ApiOptions.from_environment({"TEMPERA_API_HOSTS": "a.example, b.example", "TEMPERA_API_PORT": "8123"})
    assert (good.port, good.allow_hosts, good.bind) == (8123, ("a.example", "b.example"), "127.0.0.1")
