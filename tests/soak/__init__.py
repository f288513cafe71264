"""A real run under seeded faults, judged by the checker: `python -m tests.soak`.

storage -> the shard server that misbehaves on demand; processes -> the run's processes, found by what they are;
faults -> what can be done to them; session -> the fault run; record -> what was done; verdict -> checker, leaks, table.
"""
