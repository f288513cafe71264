"""Inside a stream: windows of draws become groups of requests, and those become finished batches."""
