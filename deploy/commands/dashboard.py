"""`tempera dashboard` and `tempera monitor`: a run's page, and the files by which Prometheus and Grafana watch it."""

from __future__ import annotations

import threading
from pathlib import Path

from tyro.conf import Positional

from deploy.console import ERR, OUT, Answer, say, table, working
from deploy.runs.rundir import RunDir, RunError, find_run

RAY_TARGETS = Path("/tmp/ray/prom_metrics_service_discovery.json")  # noqa: S108 - where Ray writes it
"""Ray's list of the addresses where its nodes export metrics."""


def dashboard(run: Positional[Path | None] = None, *, open: bool = False) -> Answer | None:
    """Show the live page of a run; a run that is over is served for reading until Ctrl-C.

    Args:
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        open: also open it in this machine's browser.
    """
    found = find_run(run)
    address = found.api_url()
    if address is None:
        _serve_finished(found, open_browser=open)
        return None
    _open(address, found.api_token, wanted=open)
    data = {"run": str(found.path), "url": address, "token_file": str(found.api_token)}
    return Answer(data=data, view=f"{found.path}: {_shown(address, found.api_token, at_terminal=OUT.is_terminal)}")


def monitor(run: Positional[Path | None] = None, *, out: Path = Path("monitoring")) -> Answer:
    """Write the files with which Prometheus and Grafana watch a run: prometheus.yml, alerts.yml, grafana.json.

    Args:
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        out: folder to write into.
    """
    from deploy.observe.monitor import write_monitoring

    found = find_run(run)
    targets = RAY_TARGETS if RAY_TARGETS.is_file() else None
    if (address := found.api_url()) is None:
        raise RunError(f"{found.path} is not running, so nothing can be scraped. `tempera resume {found.path}` first.")
    written = write_monitoring(out, url=address, token_file=found.api_token, ray_targets=targets)
    rows = [(path.name, what) for path, what in zip(written, WRITTEN, strict=True)]
    return Answer(data={"files": [str(path) for path in written]}, view=table(f"written to {out}", ("", ""), rows))


WRITTEN = (
    "scrape configuration: prometheus --config.file=prometheus.yml",
    "alert rules, named by the scrape configuration",
    "dashboard to import into Grafana",
)
"""Purpose of each file, in order."""


def _link(address: str, token_file: Path) -> str:
    """Return the address of a run's page; browsers do not send the token behind the #."""
    return f"{address}/#token={token_file.read_text().strip()}"


def _shown(address: str, token_file: Path, *, at_terminal: bool) -> str:
    """Return the link with the token at a terminal, and without it elsewhere: it would be a token in a log."""
    return _link(address, token_file) if at_terminal else f"{address}/ (its token is in {token_file})"


def _serve_finished(run: RunDir, *, open_browser: bool) -> None:
    import tempfile

    from deploy.api.backend import finished_backend
    from deploy.api.server import serving
    from deploy.runs.config import load_config

    with tempfile.TemporaryDirectory(prefix="tempera-") as folder:
        with working(f"{run.path} is over; reading its log"):
            backend = finished_backend(run)
        token = Path(folder) / "api-token"
        with serving(load_config(run.config), run, backend, token_path=token) as address:
            say(f"{_shown(address, token, at_terminal=ERR.is_terminal)}\nCtrl-C ends it")
            _open(address, token, wanted=open_browser)
            threading.Event().wait()


def _open(address: str, token_file: Path, *, wanted: bool) -> None:
    if wanted:
        import webbrowser

        # By way of a file that only its owner reads: every user of the machine can read a browser's command line.
        page = token_file.with_name("open.html")
        page.touch(mode=0o600)
        page.write_text(f'<meta http-equiv="refresh" content="0; url={_link(address, token_file)}">')
        webbrowser.open(page.resolve().as_uri())
