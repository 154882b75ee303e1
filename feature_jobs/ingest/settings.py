"""Which lake a landing zone goes into: an existing one if its settings agree, else a new one."""

from schemas.config import Config, parse_config
from schemas.errors import BadInput
from schemas.lake import CONFIG_FILE, Lake, create_lake, filesystem_of, is_lake, open_lake

TIMEZONE = "lake.day_timezone"


def open_or_create(uri: str, config_file: str | None, overrides: list[str] | None, day_timezone: str | None) -> Lake:
    """Open the lake, or create it from ``config_file`` and ``overrides``; a new one takes the landing's day_timezone.

    Raises BadInput if the landing's time zone or the file says something else than the lake, or an override would
    change what is fixed for a lake's life.
    """
    if not is_lake(uri):
        return create_lake(uri, new_config(config_file, overrides, day_timezone))
    return check_existing(uri, config_file, overrides, day_timezone)


def check_existing(uri: str, config_file: str | None, overrides: list[str] | None, day_timezone: str | None) -> Lake:
    """Open an existing lake for this landing (with the overrides of this run); same errors."""
    stored, lake = open_lake(uri).config, open_lake(uri, overrides)
    if config_file is not None and _read(config_file, None) != stored:
        raise BadInput(
            f"--config {config_file}: differs from {lake.root}/{CONFIG_FILE}, which the lake was created with; leave --config "
            "out, or use --set for this run"
        )
    if day_timezone is not None and day_timezone != stored.lake.day_timezone:
        raise BadInput(
            f"landing.json: day_timezone {day_timezone} differs from the lake's {stored.lake.day_timezone}; use another lake"
        )
    return lake


def new_config(config_file: str | None, overrides: list[str] | None, day_timezone: str | None) -> Config:
    """Settings of a new lake. A time zone that is said twice must be the same."""
    config = _read(config_file, overrides)
    if day_timezone is None:
        return config
    if config.lake.day_timezone not in (Config().lake.day_timezone, day_timezone):
        raise BadInput(
            f"landing.json: day_timezone {day_timezone} differs from {TIMEZONE} {config.lake.day_timezone}; settle on one"
        )
    return _read(config_file, [*(overrides or []), f"{TIMEZONE}={day_timezone}"])


def _read(config_file: str | None, overrides: list[str] | None) -> Config:
    if config_file is None:
        return parse_config("", "default settings", overrides)
    filesystem, path = filesystem_of(config_file)
    info = filesystem.get_file_info(path)
    if not info.is_file or info.size > 1 << 20:
        raise BadInput(f"--config {config_file}: no such file of settings; docs/configuration.md shows one")
    with filesystem.open_input_stream(path) as stream:
        return parse_config(stream.read().decode(errors="replace"), f"--config {config_file}", overrides)
