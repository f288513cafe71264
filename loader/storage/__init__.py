"""Shard files on disks, web servers and in buckets, read by byte range; and a cache of them on a local disk."""
