"""The cluster protocol of a node: membership now; token, message and ack build on it."""
