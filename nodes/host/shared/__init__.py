"""What the hosts of several systems share."""
