"""The HTTP API beside a run: what the command line, the dashboard and `deploy.api.client.RunClient` see and change.

It is served on loopback by a thread of the process that launches the run, and ends with it. The run directory says how
to reach it: `api.json` {"url", "pid"} and `api-token` (mode 0600). `tempera dashboard RUN_DIR` serves a run that is
over, for reading only.

Every method under /api/ wants `Authorization: Bearer TOKEN`. Free of it are `/`, `/assets/*` (the files of
`deploy/dashboard/`), `/openapi.json` and `/healthz` ({"ok": true}). The page finds its token behind the `#token=` of
the address, which browsers do not send. Bodies are JSON objects (`Content-Type: application/json`) of at most 64 KB,
unknown fields are refused. An error is {"error": one line}: 400 not JSON, 401 token, 403 Host, Origin or site, 404,
405, 409 an old version or a run that cannot do it now, 413, 415, 422 a field, 429 and 503 try again later.

GET /api/v1/state
    {"run": {"name", "run_dir", "method", "started", "status"},     status: running, paused, stopping, or over
     "progress": {"step", "total_steps", "eta_s", "images_per_s", "data_wait", "loss"},    null where not known yet
     "selection": scoring.Selection.state(),
     "fleet": as /loaders,
     "control": {"version", "next_window", "next_step",             where a change lands if it is made now
                 "bound_steps", "bound_s", "window_steps",          most steps, and seconds at the present speed, from
                                                                    a request to the first batch drawn under it
                 "policies": {name: whether it has a temperature}}, what a policy may be set to
     "latency": {"count", "p50_s", "p99_s", "last_s"},              what that has taken
     "bad_samples": int,                                            draws that met one and were given a spare
     "paused": bool, "pausing": bool,                               the trainers rest; they were asked to
     "read_only": bool, "time": seconds since the epoch}
GET /metrics                                Prometheus' text format, see deploy.observe; the token as everywhere
GET /api/v1/metrics?since=STEP&points=N     {"rows": [lines of metrics.jsonl], "total": int}; at most N rows with a
                                            loss, evenly chosen, the newest always; rows without a loss besides
GET /api/v1/stream                          server-sent events: "state" about once a second, "metrics" {"rows"} when
                                            there are new ones; ": beat" comments between
GET /api/v1/curve                           {"past": [[step, effective_size, temperature]], "scheduled": [[step,
                                            effective_size]], "manual": bool, "window_steps": int}
GET /api/v1/distribution?bins=64            {"edges": [bins + 1], "count": [bins], "sampled_mass": [bins] (sums to 1),
                                            "effective_size", "temperature", "policy"}; empty lists without distances
GET /api/v1/solve?effective_size=0.35       {"effective_size", "temperature", "policy"}: what a change would put in
                                            force; or ?temperature=0.1, or ?policy=hard
GET /api/v1/samples/top?by=probability&k=24 {"by", "samples": [{"sample_id", "key", "label", "distance", "cluster",
                                            "probability", "times_drawn", "score"}]}; by: probability, times_drawn,
                                            score, prototypes (the sample nearest to its centroid, largest clusters
                                            first)
GET /api/v1/samples/ID                      one such object
GET /api/v1/samples/ID/image?side=96        image/jpeg, read through the loader's checked path
GET /api/v1/summary?top=10                  scoring.views.summary: effective sample size, entropy, most drawn
GET /api/v1/scores                          {"kinds": {kind: {"scored", "quantiles": {q: value}}}, "num_samples",
                                            "rounds": [{"kind", "step", "window", "time", "kept", "threshold"}]}
GET /api/v1/loaders                         {"desired", "author", "reason", "members": [{"name", "state", "node", "pid",
                                            "images_per_s", "hit_rate", "restarts", "images", "reason"}], "scalable"}
GET /api/v1/log?limit=50&before=SEQUENCE&changes=true   {"entries": [scoring.LogEntry], "more": bool}, oldest first;
                                            changes leaves out the schedule's and the bad samples
GET /api/v1/bad-samples?limit=100           {"total", "samples": [{"sample_id", "reason", "times", "step", "time"}]}
POST /api/v1/controls   {"kind": effective_size | temperature | policy | distances | release, "value", "author",
                         "reason", "expected_version", "request"}   -> {"version", "window", "step", "effective_size",
                        "temperature"}; the value of distances is a prototypes file below the run's directory or beside
                        its index; 409 {"error", "version", "winner": LogEntry} when the version is old; the same
                        "request" (any text of one's own) twice is applied once
POST /api/v1/scale      {"loaders", "author", "reason"}     -> {"previous", "size", "author", "reason"}
POST /api/v1/pause, /resume, /stop  {"author", "reason"}    -> {"paused", "pausing", "stopping"}
POST /api/v1/export     {"author", "reason"}                -> {"path", "rows"}: the sample table in the report folder
"""
