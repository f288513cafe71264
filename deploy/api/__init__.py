"""The HTTP API beside a run: the command line, the dashboard and `deploy.api.client.RunClient` read and change it here.

A thread of the process that launches the run serves it on loopback, and ends with it. The run directory says how to
reach it: `api.json` {"url", "pid"} and `api-token` (mode 0600). `tempera dashboard RUN_DIR` serves a run that is over,
for reading only.

A request passes the guards (`guards`), then a route (`routes`, one table), then the method of `RunService` (`service`)
that answers it from the selection and the loaders (`backend`). /openapi.json describes every path, its parameters and
its answer, field by field (`models`, and `changes` for what POST takes and answers).

Every path under /api/ and /metrics wants `Authorization: Bearer TOKEN`; `/`, `/assets/*` (the files of
`deploy/dashboard/`), `/openapi.json` and `/healthz` ({"ok": true}) do not. The page reads its token from the fragment
`#token=` of its address, which browsers do not send. Bodies are JSON objects of at most 64 KB. An error is {"error":
one line}: 400 not JSON, 401 token, 403 Host, Origin or site, 404, 405, 409 an old version or a run in another state
(with "version" and "winner", the log entry that came first), 413, 415, 422 a field, 429 and 503 try again later.

GET /api/v1/stream sends server-sent events: "state" (as /state) about once a second, "metrics" {"rows"} when there are
new ones, "trouble" {"error"} while the selection restarts; ": beat" comments between.
"""
