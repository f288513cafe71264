"""`tempera dashboard` and `tempera monitor`: the live page of a run, and what Prometheus and Grafana need for it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tyro.conf import Positional

from deploy.console import Answer, say, table
from deploy.rundir import RunDir, RunError, find_run

RAY_TARGETS = Path("/tmp/ray/prom_metrics_service_discovery.json")  # noqa: S108 - where Ray writes it
"""Ray's list of the addresses that its nodes export metrics at."""


def dashboard(run: Positional[Path | None] = None, *, open: bool = False) -> Answer | None:
    """Show the live page of a run; a run that is over is served for reading until Ctrl-C.

    Args:
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        open: open it in this machine's browser as well.
    """
    found = find_run(run)
    url = live_url(found)
    if url is None:
        _serve_finished(found, open_browser=open)
        return None
    _open(url, wanted=open)
    return Answer(data={"run": str(found.path), "url": url}, view=f"{found.path}: {url}")


def monitor(run: Positional[Path | None] = None, *, out: Path = Path("monitoring")) -> Answer:
    """Write what Prometheus and Grafana need to watch a run: prometheus.yml, alerts.yml, grafana.json.

    Args:
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        out: folder to write into.
    """
    from deploy.observe.monitor import write_monitoring

    found = find_run(run)
    targets = RAY_TARGETS if RAY_TARGETS.is_file() else None
    if (address := _address(found)) is None:
        raise RunError(f"{found.path} is not running, so nothing can be scraped. `tempera resume {found.path}` first.")
    written = write_monitoring(out, url=address, token_file=found.api_token, ray_targets=targets)
    rows = [(path.name, what) for path, what in zip(written, WRITTEN, strict=True)]
    return Answer(data={"files": [str(path) for path in written]}, view=table(f"written to {out}", ("", ""), rows))


WRITTEN = (
    "scrape configuration: prometheus --config.file=prometheus.yml",
    "alert rules, named by the scrape configuration",
    "dashboard to import into Grafana",
)
"""What each of the files is for."""


def live_url(run: RunDir) -> str | None:
    """Address of a live run's page, its token behind the # that browsers do not send; None when it is not alive."""
    address = _address(run)
    return None if address is None else f"{address}/#token={run.api_token.read_text().strip()}"


def _address(run: RunDir) -> str | None:
    if not run.is_alive:
        return None
    try:
        return str(json.loads(run.api.read_text())["url"])
    except FileNotFoundError:
        return None


def _serve_finished(run: RunDir, *, open_browser: bool) -> None:
    import tempfile

    from deploy.api.parts import finished_parts
    from deploy.api.server import serving
    from deploy.config import load_config

    say(f"{run.path} is over; reading its log")
    with tempfile.TemporaryDirectory(prefix="tempera-") as folder, finished_parts(run) as parts:
        token = Path(folder) / "api-token"
        with serving(load_config(run.config), run, parts, token_path=token) as address:
            url = f"{address}/#token={token.read_text().strip()}"
            say(f"{url}\nCtrl-C ends it")
            _open(url, wanted=open_browser)
            threading.Event().wait()


def _open(url: str, *, wanted: bool) -> None:
    if wanted:
        import webbrowser

        webbrowser.open(url)
