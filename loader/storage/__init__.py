"""Where encoded images lie: members of shards on disks, web servers and buckets, read by range and checked."""
