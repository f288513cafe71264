"""`tempera dashboard` and `tempera monitor`: a run's page, and the files by which Prometheus and Grafana watch it."""

from __future__ import annotations

import threading
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from deploy.commands.combined import AnyRun
from deploy.console import ERR, OUT, Answer, say, table, working
from deploy.runs.rundir import RunDir, RunError, find_run

RAY_TARGETS = Path("/tmp/ray/prom_metrics_service_discovery.json")  # noqa: S108 - where Ray writes it
"""Ray's list of the addresses where its nodes export metrics."""
WRITTEN = (
    "scrape configuration: prometheus --config.file=prometheus.yml",
    "alert rules, named by the scrape configuration",
    "dashboard to import into Grafana",
)


def dashboard(run: Positional[AnyRun] = None, *, open: bool = False) -> Answer | None:
    """Show the live page of a run; a run that is over is served for reading until Ctrl-C.

    Args:
        open: also open it in this machine's browser.
    """
    found = find_run(run)
    address = found.api_url()
    if address is None:
        _serve_finished(found, open_browser=open)
        return None
    data = {"run": str(found.path), "url": address, "token_file": str(found.api_token)}
    page = _show_page(address, found.api_token, OUT, open_browser=open)
    return Answer(data=data, view=f"{found.path}: {page}")


def monitor(run: Positional[AnyRun] = None, *, out: Path = Path("monitoring")) -> Answer:
    """Write the files with which Prometheus and Grafana watch a run: prometheus.yml, alerts.yml, grafana.json.

    Args:
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


def _show_page(address: str, token_file: Path, console: Console, *, open_browser: bool) -> str:
    """Return the line that says where the page is, and open it in this machine's browser if wanted.

    A terminal gets the link with the token behind the #, which browsers do not send; a pipe or a log must not hold it.
    """
    link = f"{address}/ (its token is in {token_file})"
    if console.is_terminal or open_browser:
        with_token = f"{address}/#token={token_file.read_text().strip()}"
        link = with_token if console.is_terminal else link
    if open_browser:
        import webbrowser

        # By way of a file that only its owner reads: every user of the machine can read a browser's command line.
        page = token_file.with_name("open.html")
        page.touch(mode=0o600)
        page.write_text(f'<meta http-equiv="refresh" content="0; url={with_token}">')
        webbrowser.open(page.resolve().as_uri())
    return link


def _serve_finished(run: RunDir, *, open_browser: bool) -> None:
    import tempfile

    from deploy.api.backend import finished_backend
    from deploy.api.server import serving
    from deploy.runs.config import load_config

    # Not in the run directory: a run that is resumed meanwhile has its own token there.
    with tempfile.TemporaryDirectory(prefix="tempera-") as folder:
        with working(f"{run.path} is over; reading its log"):
            backend = finished_backend(run)
        token = Path(folder) / "api-token"
        with serving(load_config(run.config), run, backend, token_path=token) as address:
            say(f"{_show_page(address, token, ERR, open_browser=open_browser)}\nCtrl-C ends it")
            threading.Event().wait()
