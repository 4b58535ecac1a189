"""`fiml install`, run in a home and a folder of its own."""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from fiml.cli.install import Client, configuration_file, install
from fiml.core.errors import Misconfigured, MissingExtra
from tests.support.doctor import forget_home

PASSWORD = "hunter2"  # noqa: S105 - nobody's
SERVER = {
    "FIML_REDIS_URL": f"redis://:{PASSWORD}@cache:6379/0",
    "FIML_DATABASE_URL": f"postgresql://fiml:{PASSWORD}@db/fiml",
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.upper().startswith("FIML_"):
            monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "home"


def run(*arguments: str, **variables: str) -> Result:
    app = typer.Typer()
    app.command()(install)
    return CliRunner().invoke(app, arguments, env=variables)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("client", "place"),
    [
        (Client.CLAUDE_DESKTOP, "home/.config/Claude/claude_desktop_config.json"),
        (Client.CLAUDE_CODE, "project/.mcp.json"),
        (Client.CURSOR, "home/.cursor/mcp.json"),
        (Client.VSCODE, "project/.vscode/mcp.json"),
    ],
)
def test_each_client_has_its_file_and_is_told_where(client: Client, place: str, tmp_path: Path) -> None:
    result = run(client)

    assert configuration_file(client, "linux") == tmp_path / place
    assert str(configuration_file(client)) in result.stderr


def test_a_user_without_a_home_folder_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_home(monkeypatch)

    with pytest.raises(Misconfigured, match="this user has no home folder"):
        configuration_file(Client.CURSOR)


def test_claude_desktop_keeps_its_file_where_each_system_does(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("APPDATA", str(home / "Roaming"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))

    places = {system: configuration_file(Client.CLAUDE_DESKTOP, system) for system in ("darwin", "win32", "linux")}

    name = "Claude/claude_desktop_config.json"
    assert places == {
        "darwin": home / "Library/Application Support" / name,
        "win32": home / "Roaming" / name,
        "linux": home / "xdg" / name,
    }


def test_standard_output_is_the_json_and_nothing_else() -> None:
    result = run("cursor")

    entry = {"command": sys.executable, "args": ["-m", "fiml", "serve"], "env": {}}
    assert json.loads(result.stdout) == {"mcpServers": {"fiml": entry}}


def test_vs_code_has_its_own_key_and_names_the_transport() -> None:
    servers = json.loads(run("vscode").stdout)["servers"]

    assert servers["fiml"]["type"] == "stdio"


def test_long_values_are_not_cut() -> None:
    folder = "/" + "long/" * 60 + "folder"

    result = run("cursor", FIML_DATA_DIR=folder)

    assert json.loads(result.stdout)["mcpServers"]["fiml"]["env"] == {"FIML_DATA_DIR": folder}


def test_the_settings_of_the_environment_go_along_and_nothing_else(tmp_path: Path) -> None:
    result = run("cursor", FIML_DATA_DIR="sessions", FIML_MARKET_DATA="sample", FIML_BROKER_URL="", FIML_NONSENSE="1")

    env = json.loads(result.stdout)["mcpServers"]["fiml"]["env"]
    assert env == {"FIML_DATA_DIR": str(tmp_path / "project/sessions"), "FIML_MARKET_DATA": "sample"}
    assert "FIML_NONSENSE is not a setting" in result.stderr


def test_every_path_is_written_whole(tmp_path: Path) -> None:
    paths = {"FIML_DATA_DIR": "~/sessions", "FIML_ENCRYPTION_KEYS": "keys", "FIML_AUTH_JWKS": "jwks.json"}
    result = run("cursor", **paths, FIML_AUTH_ISSUER="https://issuer.example", FIML_AUTH_AUDIENCE="fiml")

    env = json.loads(result.stdout)["mcpServers"]["fiml"]["env"]
    whole = [tmp_path / "home/sessions", tmp_path / "project/keys", tmp_path / "project/jwks.json"]
    assert [env[name] for name in paths] == [str(path) for path in whole]


def test_without_write_nothing_is_written(home: Path) -> None:
    result = run("cursor")

    assert not home.exists()
    assert "nothing was written" in result.stderr


@pytest.mark.parametrize("client", Client)
def test_what_is_written_is_what_was_shown(client: Client) -> None:
    result = run(client, "--write")

    assert result.exit_code == 0
    assert read(configuration_file(client)) == json.loads(result.stdout)


def test_everything_else_in_the_file_stays(home: Path) -> None:
    other = {"command": "größe", "env": {"A": "1"}}
    file = write(
        home / ".cursor/mcp.json", json.dumps({"theme": "dark", "mcpServers": {"other": other, "fiml": {"old": 1}}})
    )

    run("cursor", "--write")

    document = read(file)
    assert list(document) == ["theme", "mcpServers"]
    assert document["theme"] == "dark"
    assert document["mcpServers"]["other"] == other
    assert "old" not in document["mcpServers"]["fiml"]


def test_a_byte_order_mark_is_accepted(home: Path) -> None:
    file = write(home / ".cursor/mcp.json", '\ufeff{"theme": "dark"}')

    run("cursor", "--write")

    assert read(file)["theme"] == "dark"


def test_a_second_run_changes_nothing_and_says_so(home: Path) -> None:
    run("cursor", "--write")
    before = (home / ".cursor/mcp.json").stat()

    result = run("cursor", "--write")

    after = (home / ".cursor/mcp.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert "nothing was changed" in result.stderr


def test_an_existing_file_keeps_its_mode_and_no_other_is_left(home: Path) -> None:
    file = write(home / ".cursor/mcp.json", "{}")
    file.chmod(0o640)

    run("cursor", "--write", **SERVER)

    assert mode_of(file) == 0o640
    assert list(file.parent.iterdir()) == [file]


def test_a_link_to_the_file_stays_a_link(home: Path, tmp_path: Path) -> None:
    target = write(tmp_path / "dotfiles/mcp.json", "{}")
    (home / ".cursor").mkdir(parents=True)
    (home / ".cursor/mcp.json").symlink_to(target)

    run("cursor", "--write")

    assert (home / ".cursor/mcp.json").is_symlink()
    assert "fiml" in read(target)["mcpServers"]


@pytest.mark.parametrize(
    "text",
    ["", "{'a': 1}", "// a comment\n{}", "[]", '{"mcpServers": []}', '{"a": 1, "a": 2}'],
    ids=["empty", "quotes", "comment", "array", "servers an array", "a name twice"],
)
def test_a_malformed_file_is_left_alone(text: str, home: Path) -> None:
    file = write(home / ".cursor/mcp.json", text)

    result = run("cursor", "--write")

    assert isinstance(result.exception, Misconfigured)
    assert str(file) in str(result.exception)
    assert "by hand" in str(result.exception)
    assert "fiml" in json.loads(result.stdout)["mcpServers"], "what to add by hand was shown"
    assert file.read_text(encoding="utf-8") == text


def test_a_file_that_is_not_text_is_left_alone(home: Path) -> None:
    file = write(home / ".cursor/mcp.json", "")
    file.write_bytes(b"\xff\xfe\x00")

    result = run("cursor", "--write")

    assert isinstance(result.exception, Misconfigured)
    assert file.read_bytes() == b"\xff\xfe\x00"


def test_a_folder_that_can_not_be_made_is_an_error_that_names_it(home: Path) -> None:
    write(home / ".cursor", "a file where the folder should be")

    result = run("cursor", "--write")

    assert isinstance(result.exception, Misconfigured)
    assert str(home / ".cursor/mcp.json") in str(result.exception)


def test_a_password_is_written_but_never_shown(home: Path) -> None:
    result = run("cursor", "--write", **SERVER)

    file = home / ".cursor/mcp.json"
    assert PASSWORD not in result.output
    assert json.loads(result.stdout)["mcpServers"]["fiml"]["env"] == {
        "FIML_DATABASE_URL": "postgresql://***@db/fiml",
        "FIML_REDIS_URL": "redis://***@cache:6379/0",
    }
    assert read(file)["mcpServers"]["fiml"]["env"] == SERVER
    assert mode_of(file) == 0o600


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://db/fiml?user=me&password={PASSWORD}",
        f"postgresql://db/fiml?password=a@{PASSWORD}",
        f"postgresql://me:a@{PASSWORD}@db/fiml",
        f"postgresql://me:a?{PASSWORD}@db/fiml",
        f"postgresql://me:a/{PASSWORD}@db/fiml",
    ],
)
def test_a_password_is_not_shown_wherever_it_stands_in_a_url(url: str) -> None:
    result = run("cursor", FIML_REDIS_URL="redis://cache", FIML_DATABASE_URL=url)

    assert PASSWORD not in result.output
    assert json.loads(result.stdout)["mcpServers"]["fiml"]["env"]["FIML_REDIS_URL"] == "redis://cache"


def test_a_password_in_the_address_of_keys_is_not_shown_and_a_file_of_keys_is(tmp_path: Path) -> None:
    issuer = {"FIML_AUTH_ISSUER": "https://id.example", "FIML_AUTH_AUDIENCE": "fiml"}

    at_address = run("cursor", **issuer, FIML_AUTH_JWKS=f"https://fiml:{PASSWORD}@id.example/keys")
    in_file = run("cursor", **issuer, FIML_AUTH_JWKS=str(tmp_path / "keys"))

    assert PASSWORD not in at_address.output
    assert "password in FIML_AUTH_JWKS" in at_address.stderr
    assert json.loads(in_file.stdout)["mcpServers"]["fiml"]["env"]["FIML_AUTH_JWKS"] == str(tmp_path / "keys")


def test_a_url_without_a_password_is_shown_whole() -> None:
    url = "postgresql://me@/fiml?host=/socket/folder"

    result = run("cursor", FIML_REDIS_URL="redis://cache", FIML_DATABASE_URL=url)

    assert json.loads(result.stdout)["mcpServers"]["fiml"]["env"]["FIML_DATABASE_URL"] == url
    assert "password in" not in result.stderr


def test_passwords_are_announced_before_anything_is_written(home: Path) -> None:
    write(home / ".cursor/mcp.json", "no JSON")

    result = run("cursor", "--write", **SERVER)

    assert "password in FIML_DATABASE_URL, FIML_REDIS_URL" in result.stderr


def test_passwords_in_a_project_are_to_stay_out_of_version_control() -> None:
    assert "version control" in run("claude-code", **SERVER).stderr
    assert "version control" not in run("cursor", **SERVER).stderr


def test_a_file_without_passwords_is_readable_as_others_are(tmp_path: Path) -> None:
    run("claude-code", "--write")

    assert mode_of(tmp_path / "project/.mcp.json") == mode_of(write(tmp_path / "other", ""))


def test_it_says_that_the_data_is_a_sample() -> None:
    assert "market data: sample" in run("cursor", FIML_MARKET_DATA="sample").stderr


def test_it_says_that_the_data_is_live_where_a_live_source_is_installed() -> None:
    assert "market data: live (FIML_MARKET_DATA is auto)" in run("cursor").stderr


def test_live_data_without_a_source_is_refused_before_a_client_meets_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiml.market.providers.live.live_extras", list)

    result = run("cursor", "--write", FIML_MARKET_DATA="live")

    assert isinstance(result.exception, MissingExtra)
    assert not home.exists()


def test_wrong_settings_are_refused_before_a_client_meets_them(home: Path) -> None:
    result = run("cursor", "--write", FIML_REDIS_URL="redis://cache")

    assert isinstance(result.exception, Misconfigured)
    assert not home.exists()


@pytest.mark.parametrize("client", Client)
def test_it_says_what_to_do_next(client: Client) -> None:
    assert "start" in run(client, "--write").stderr.splitlines()[-1]


def test_an_unknown_client_is_refused_with_the_known_ones() -> None:
    result = run("emacs")

    assert result.exit_code == 2
    assert "claude-desktop" in result.output
